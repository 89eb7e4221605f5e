// Package reload notices that files have changed and hands over what they say now.
//
// It looks at contents, every two seconds, and not at events or times: that finds what is written in
// place, renamed into place, or swapped behind a symbolic link, as Kubernetes does with a mounted secret,
// on every file system; and files of a few kilobytes cost nothing to read. What the contents mean is for
// who asks.
package reload

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Every is how often files are looked at.
const Every = 2 * time.Second

// maxBytes bounds one file.
const maxBytes = 1 << 20

// Watch looks at some files until it is closed.
type Watch struct {
	files []string
	load  func(contents [][]byte) error
	log   *slog.Logger

	loaded [][]byte // what load took
	seen   [][]byte // what was there when it was last looked
	failed string   // why what is there was not taken, "" if it was

	stop  chan struct{}
	ended sync.WaitGroup
	once  sync.Once
}

// Start reads the files and has load take their contents, in the order of files; an error of either is
// returned, and nothing is watched. Afterwards load is called again with all contents when one of them has
// changed and all have stood still since the last look. When it returns an error, it must have changed
// nothing; the error is logged, and the call repeated until it succeeds or the files change again. Calls
// do not overlap. log may be nil for slog.Default.
func Start(files []string, log *slog.Logger, load func(contents [][]byte) error) (*Watch, error) {
	if log == nil {
		log = slog.Default()
	}
	w := &Watch{files: files, load: load, log: log, stop: make(chan struct{})}
	contents, err := w.read()
	if err == nil {
		err = load(contents)
	}
	if err != nil {
		return nil, err
	}
	w.loaded, w.seen = contents, contents
	w.ended.Go(w.run)
	return w, nil
}

// Close returns when load runs no more. Safe to call more than once.
func (w *Watch) Close() {
	w.once.Do(func() { close(w.stop) })
	w.ended.Wait()
}

func (w *Watch) run() {
	ticker := time.NewTicker(Every)
	defer ticker.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-ticker.C:
		}
		if err := w.look(); err == nil {
			w.failed = ""
		} else if err.Error() != w.failed {
			w.failed = err.Error()
			w.log.Error("a changed file is not taken up: what it said before holds", "files", w.files, "error", err)
		}
	}
}

// look takes up what has changed. Its error says why what is there does not hold.
func (w *Watch) look() error {
	contents, err := w.read()
	if err != nil {
		return err
	}
	before := w.seen
	w.seen = contents
	switch {
	case same(contents, w.loaded):
		return nil
	case !same(contents, before):
		return nil // perhaps only one half of it has changed yet
	}
	if err := w.load(contents); err != nil {
		return err
	}
	w.loaded = contents
	w.log.Info("a changed file was taken up", "files", w.files)
	return nil
}

func (w *Watch) read() ([][]byte, error) {
	contents := make([][]byte, len(w.files))
	for i, name := range w.files {
		content, err := readFile(name)
		if err != nil {
			return nil, err
		}
		contents[i] = content
	}
	return contents, nil
}

func readFile(name string) (_ []byte, err error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	content, err := io.ReadAll(io.LimitReader(file, maxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxBytes {
		return nil, fmt.Errorf("%s: it is longer than %d bytes", name, maxBytes)
	}
	return content, nil
}

func same(a, b [][]byte) bool {
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}
