package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

const (
	// blockSize is what is compressed together. A multiple of deflate's window, so that the codecs with a
	// larger one can show it.
	blockSize = 256 << 10
	// batch is how many blocks one call asks about, and what a batch holds in memory is 64 MiB at most.
	batch = 256
	// withoutModel is the codec of blocks that no model could be asked about: storing goes on.
	withoutModel = "zstd-best"
)

// store is a directory with two files: data, to which blocks are only ever appended, and index, a
// bbolt database that says where each file's blocks are. The index names a block only after data is on
// the disk with it, so a store that is killed at any time has each of its files whole or not at all;
// what was appended and not named is cut off when it is opened again.
type store struct {
	data  *os.File
	index *bolt.DB
	end   int64 // of data
}

var (
	bucketFiles = []byte("files") // path to file
	bucketState = []byte("state")
	keyEnd      = []byte("end") // of what is named in data
)

// file is what the index says of one.
type file struct {
	Size   int64             `json:"size"`
	Mode   fs.FileMode       `json:"mode"`
	Time   time.Time         `json:"time"`
	SHA256 [sha256.Size]byte `json:"sha256"`
	Blocks []block           `json:"blocks"`
}

// block is where one is, and how it was made.
type block struct {
	At    int64  `json:"at"`
	Bytes int    `json:"bytes"` // in data
	Size  int    `json:"size"`  // as it was
	Codec string `json:"codec"`
}

func open(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	index, err := bolt.Open(filepath.Join(dir, "index"), 0o600, &bolt.Options{Timeout: 2 * time.Second})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is in use by another store", dir)
	}
	if err != nil {
		return nil, err
	}
	s := &store{index: index}
	if err := s.openData(filepath.Join(dir, "data")); err != nil {
		index.Close()
		return nil, err
	}
	return s, nil
}

func (s *store) openData(path string) error {
	err := s.index.Update(func(tx *bolt.Tx) error {
		if _, err := tx.CreateBucketIfNotExists(bucketFiles); err != nil {
			return err
		}
		state, err := tx.CreateBucketIfNotExists(bucketState)
		if err != nil {
			return err
		}
		if raw := state.Get(keyEnd); raw != nil {
			return json.Unmarshal(raw, &s.end)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if s.data, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	info, err := s.data.Stat()
	if err == nil && info.Size() < s.end {
		err = fmt.Errorf("%s has %d bytes where the index names %d", path, info.Size(), s.end)
	}
	if err == nil {
		err = s.data.Truncate(s.end)
	}
	if err != nil {
		s.data.Close()
	}
	return err
}

func (s *store) close() error { return errors.Join(s.data.Close(), s.index.Close()) }

// total is what a put did.
type total struct {
	files, blocks, unasked int
	in, out                int64
	by                     map[string]int
	features, asking       time.Duration
	compressing            time.Duration
}

func (t total) String() string {
	var by []string
	for name, n := range t.by {
		by = append(by, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(by)
	text := fmt.Sprintf("%d files, %d blocks (%s): %d bytes became %d", t.files, t.blocks, strings.Join(by, ", "), t.in, t.out)
	if t.unasked > 0 {
		text += fmt.Sprintf("; no model answered for %d blocks, which are %s", t.unasked, withoutModel)
	}
	return fmt.Sprintf("%s; features %v, calls %v, compression %v", text, t.features.Round(time.Millisecond), t.asking.Round(time.Millisecond),
		t.compressing.Round(time.Millisecond))
}

// pending is a batch on its way: files that are read, and blocks that are not stored yet.
type pending struct {
	names  []string
	files  []file
	owner  []int // by block: its file
	blocks [][]byte
}

// put adds files. A path that is there already is replaced; the bytes of the old one stay in data.
func (s *store) put(ctx context.Context, choose chooser, paths []string) (total, error) {
	sum := total{by: map[string]int{}}
	var p pending
	for _, root := range paths {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			if err := p.read(path); err != nil {
				return err
			}
			if len(p.blocks) < batch {
				return nil
			}
			return s.flush(ctx, choose, &p, &sum)
		})
		if err != nil {
			return sum, err
		}
	}
	return sum, s.flush(ctx, choose, &p, &sum)
}

// maxFile bounds a file, since its blocks are in memory until they are stored.
const maxFile = 1 << 30

func (p *pending) read(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxFile {
		return fmt.Errorf("%s has %d bytes; files up to %d are stored", path, info.Size(), maxFile)
	}
	name, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	f := file{Mode: info.Mode().Perm(), Time: info.ModTime()}
	hash := sha256.New()
	for {
		block := make([]byte, min(blockSize, max(512, info.Size()-f.Size+1)))
		n, err := io.ReadFull(in, block)
		if n > 0 {
			hash.Write(block[:n])
			f.Size += int64(n)
			p.blocks, p.owner = append(p.blocks, block[:n]), append(p.owner, len(p.files))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
		if f.Size > maxFile {
			return fmt.Errorf("%s grows", path)
		}
	}
	hash.Sum(f.SHA256[:0])
	p.names, p.files = append(p.names, name), append(p.files, f)
	return nil
}

// flush stores a batch: asks, compresses, writes, waits for the disk, and then names the files.
func (s *store) flush(ctx context.Context, choose chooser, p *pending, sum *total) error {
	began := time.Now()
	described := make([]features, len(p.blocks))
	for i, b := range p.blocks {
		described[i] = describe(b)
	}
	sum.features += time.Since(began)
	for from := 0; from < len(p.blocks); from += batch {
		part := described[from:min(from+batch, len(described))]
		began = time.Now()
		chosen, err := choose.choose(ctx, part)
		sum.asking += time.Since(began)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			slog.Warn("storing without the model", "blocks", len(part), "codec", withoutModel, "error", err)
			sum.unasked += len(part)
			chosen, _ = always(withoutModel).choose(ctx, part)
		}
		for i, name := range chosen {
			if err := s.write(p, from+i, name, sum); err != nil {
				return err
			}
		}
	}
	if err := s.commit(p); err != nil {
		return err
	}
	for _, f := range p.files {
		sum.in += f.Size
	}
	sum.files += len(p.files)
	*p = pending{}
	return nil
}

// write appends a block to data. One that its codec makes larger stays as it is.
func (s *store) write(p *pending, i int, name string, sum *total) error {
	c, err := codecOf(name)
	if err != nil {
		return err
	}
	raw := p.blocks[i]
	began := time.Now()
	packed, err := c.compress(raw)
	sum.compressing += time.Since(began)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(packed) >= len(raw) {
		packed, name = raw, "none"
	}
	if _, err := s.data.WriteAt(packed, s.end); err != nil {
		return err
	}
	f := &p.files[p.owner[i]]
	f.Blocks = append(f.Blocks, block{At: s.end, Bytes: len(packed), Size: len(raw), Codec: name})
	s.end += int64(len(packed))
	sum.blocks++
	sum.by[name]++
	sum.out += int64(len(packed))
	return nil
}

func (s *store) commit(p *pending) error {
	if err := s.data.Sync(); err != nil {
		return err
	}
	return s.index.Update(func(tx *bolt.Tx) error {
		files := tx.Bucket(bucketFiles)
		for i, name := range p.names {
			raw, err := json.Marshal(p.files[i])
			if err != nil {
				return err
			}
			if err := files.Put([]byte(name), raw); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		end, err := json.Marshal(s.end)
		if err != nil {
			return err
		}
		return tx.Bucket(bucketState).Put(keyEnd, end)
	})
}

// each calls do with every file in the order of their names.
func (s *store) each(ctx context.Context, do func(name string, f file) error) error {
	return s.index.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketFiles).ForEach(func(name, raw []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			var f file
			if err := json.Unmarshal(raw, &f); err != nil {
				return fmt.Errorf("index: %s: %w", name, err)
			}
			return do(string(name), f)
		})
	})
}

// read writes a file's bytes to w, and returns an error if they are not what was stored.
func (s *store) read(name string, f file, w io.Writer) error {
	hash := sha256.New()
	for _, b := range f.Blocks {
		if b.At < 0 || b.Bytes < 0 || b.Bytes > 2*blockSize || b.Size < 0 || b.Size > blockSize || b.At+int64(b.Bytes) > s.end {
			return fmt.Errorf("%s: the index names a block that cannot be", name)
		}
		packed := make([]byte, b.Bytes)
		if _, err := s.data.ReadAt(packed, b.At); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		c, err := codecOf(b.Codec)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		raw, err := c.decompress(packed, b.Size)
		if err != nil || len(raw) != b.Size {
			return fmt.Errorf("%s: a block of %s at %d is damaged: %w", name, b.Codec, b.At, errors.Join(err, io.ErrUnexpectedEOF))
		}
		hash.Write(raw)
		if _, err := w.Write(raw); err != nil {
			return err
		}
	}
	if !bytes.Equal(hash.Sum(nil), f.SHA256[:]) {
		return fmt.Errorf("%s is not what was stored: its digest differs", name)
	}
	return nil
}

// verify reads everything. It returns how much is as it was, and all that is not.
func (s *store) verify(ctx context.Context) (files int, size int64, err error) {
	var bad []error
	err = s.each(ctx, func(name string, f file) error {
		if err := s.read(name, f, io.Discard); err != nil {
			bad = append(bad, err)
			return nil
		}
		files, size = files+1, size+f.Size
		return nil
	})
	return files, size, errors.Join(append(bad, err)...)
}

// restore writes all files below a directory.
func (s *store) restore(ctx context.Context, to string) error {
	if entries, err := os.ReadDir(to); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty", to)
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	// A root keeps names of the index, whatever they are, below the directory.
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer root.Close()
	return s.each(ctx, func(name string, f file) error {
		below := strings.TrimPrefix(name, string(filepath.Separator))
		if err := root.MkdirAll(filepath.Dir(below), 0o700); err != nil {
			return err
		}
		out, err := root.OpenFile(below, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.Mode|0o200)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := s.read(name, f, out); err != nil {
			return err
		}
		if err := out.Chmod(f.Mode); err != nil {
			return err
		}
		if err := out.Close(); err != nil {
			return err
		}
		return root.Chtimes(below, f.Time, f.Time)
	})
}

func (s *store) list(w io.Writer) error {
	return s.each(context.Background(), func(name string, f file) error {
		packed, by := 0, map[string]int{}
		for _, b := range f.Blocks {
			packed += b.Bytes
			by[b.Codec]++
		}
		_, err := fmt.Fprintf(w, "%12d %12d  %s  %v\n", f.Size, packed, name, by)
		return err
	})
}
