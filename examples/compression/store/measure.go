package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"time"
)

// folds is how many parts the files are dealt into, by their directory: neighbours are alike, so what
// is learned from must not stand beside what is judged by.
const folds = 10

// tested says which folds are for judging; the others are for training.
func tested(fold int) bool { return fold >= 7 }

func foldOf(path string) int {
	h := fnv.New32a()
	h.Write([]byte(filepath.Dir(path)))
	return int(h.Sum32() % folds)
}

// Columns of a measured block.
func columns() []string {
	head := append([]string{"root", "fold"}, featureNames...)
	head = append(head, "describe_s")
	for _, c := range codecs {
		head = append(head, c.name+"_bytes", c.name+"_compress_s", c.name+"_decompress_s")
	}
	return head
}

// measure writes a row a block. Files are drawn below each root until so many bytes are together.
func measure(ctx context.Context, out, progress io.Writer, roots []string, sample int64, seed uint64) error {
	w := csv.NewWriter(out)
	if err := w.Write(columns()); err != nil {
		return err
	}
	for _, root := range roots {
		var paths []string
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Type().IsRegular() {
				paths = append(paths, path)
			}
			return nil // what may not be read is left out
		})
		if err != nil {
			return err
		}
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
		var taken int64
		files := 0
		for _, path := range paths {
			if err := ctx.Err(); err != nil {
				return err
			}
			if taken >= sample {
				break
			}
			var p pending
			if p.read(path) != nil {
				continue
			}
			// A few blocks of each: a sample of files, not of the largest one.
			for _, raw := range p.blocks[:min(len(p.blocks), 8)] {
				if err := measureBlock(w, root, foldOf(path), raw); err != nil {
					return fmt.Errorf("%s: %w", path, err)
				}
				taken += int64(len(raw))
			}
			files++
			if files%200 == 0 {
				fmt.Fprintf(progress, "%s: %d files, %.1f of %.1f MiB\n", root, files, float64(taken)/(1<<20), float64(sample)/(1<<20))
			}
		}
		w.Flush()
	}
	w.Flush()
	return w.Error()
}

// repeats is how often a block is compressed; the best time counts, as the others have something else in them.
const repeats = 2

func measureBlock(w *csv.Writer, root string, fold int, raw []byte) error {
	began := time.Now()
	f := describe(raw)
	described := time.Since(began)
	row := []string{root, strconv.Itoa(fold)}
	for _, v := range f {
		row = append(row, strconv.FormatFloat(v, 'g', 5, 64))
	}
	row = append(row, seconds(described))
	for _, c := range codecs {
		var packed, back []byte
		var err error
		pack, unpack := time.Duration(1<<62), time.Duration(1<<62)
		for range repeats {
			began := time.Now()
			if packed, err = c.compress(raw); err != nil {
				return err
			}
			pack = min(pack, time.Since(began))
			began = time.Now()
			if back, err = c.decompress(packed, len(raw)); err != nil {
				return err
			}
			unpack = min(unpack, time.Since(began))
		}
		if !bytes.Equal(back, raw) {
			return fmt.Errorf("%s does not give back what it was given", c.name)
		}
		row = append(row, strconv.Itoa(min(len(packed), len(raw))), seconds(pack), seconds(unpack))
	}
	return w.Write(row)
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'g', 4, 64) }
