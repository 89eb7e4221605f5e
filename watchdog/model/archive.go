package model

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Limits bound what a zip may grow to when it is unpacked. They are checked against the bytes that
// come out, not against what the zip's directory claims.
type Limits struct {
	MaxFiles     int   // entries, folders included
	MaxFileBytes int64 // of one file, unpacked
	MaxBytes     int64 // of all files, unpacked
	// MaxRatio bounds unpacked over packed bytes of one entry, once it has unpacked more than
	// RatioFloor bytes: small text may compress well, but only a bomb does so by the megabyte.
	MaxRatio   int64
	RatioFloor int64
}

// DefaultLimits fit models up to a few gigabytes of coefficients.
var DefaultLimits = Limits{
	MaxFiles:     10_000,
	MaxFileBytes: 8 << 30,
	MaxBytes:     16 << 30,
	MaxRatio:     100,
	RatioFloor:   32 << 20,
}

// Extract unpacks the zip file into dir, which must exist and be empty. It refuses, with a
// *RefusedError, every entry that is not a plain file or folder inside dir, names that occur twice,
// and more than limits allow. On any error the content of dir is not a bundle; the caller removes it.
func Extract(ctx context.Context, file, dir string, limits Limits) error {
	archive, err := zip.OpenReader(file)
	if err != nil {
		if errors.Is(err, zip.ErrFormat) || errors.Is(err, zip.ErrAlgorithm) || errors.Is(err, io.ErrUnexpectedEOF) {
			return refused("", "is not a zip file: %v", err)
		}
		return fmt.Errorf("unpack bundle: %w", err)
	}
	defer archive.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack bundle: %w", err)
	}
	defer root.Close()

	if len(archive.File) > limits.MaxFiles {
		return tooLarge("", "has %d entries; %d are allowed", len(archive.File), limits.MaxFiles)
	}
	seen := make(map[string]bool, len(archive.File))
	var total int64
	for _, entry := range archive.File {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := strings.TrimSuffix(entry.Name, "/")
		if err := CheckPath(name); err != nil {
			return err
		}
		if Ignored(name) {
			continue
		}
		if seen[name] {
			return refused(name, "is in the zip twice")
		}
		seen[name] = true
		if strings.HasSuffix(entry.Name, "/") || entry.Mode().IsDir() {
			if err := root.MkdirAll(filepath.FromSlash(name), 0o755); err != nil {
				return refused(name, "is both a file and a folder")
			}
			continue
		}
		if !entry.Mode().IsRegular() {
			return refused(name, "is a %s: a bundle holds only files and folders", typeName(entry.Mode()))
		}
		n, err := extractFile(root, entry, name, limits, limits.MaxBytes-total)
		if err != nil {
			return err
		}
		total += n
	}
	return nil
}

// extractFile writes one entry and returns its size. left is how many bytes the bundle may still
// grow by.
func extractFile(root *os.Root, entry *zip.File, name string, limits Limits, left int64) (int64, error) {
	if entry.Flags&0x1 != 0 {
		return 0, refused(name, "is encrypted")
	}
	if parent := path.Dir(name); parent != "." {
		if err := root.MkdirAll(filepath.FromSlash(parent), 0o755); err != nil {
			return 0, refused(name, "is below a file of the same zip")
		}
	}
	perm := fs.FileMode(0o644)
	if entry.Mode()&0o111 != 0 {
		perm = 0o755
	}
	out, err := root.OpenFile(filepath.FromSlash(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return 0, refused(name, "is in the zip twice")
		}
		return 0, fmt.Errorf("unpack %s: %w", name, err)
	}
	n, err := writeEntry(out, entry, name, limits, left)
	if closeErr := out.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("unpack %s: %w", name, closeErr)
	}
	return n, err
}

func writeEntry(out io.Writer, entry *zip.File, name string, limits Limits, left int64) (int64, error) {
	in, err := entry.Open()
	if err != nil {
		return 0, refused(name, "cannot be unpacked: %v", err)
	}
	defer in.Close()

	packed := max(int64(entry.CompressedSize64), 1)
	buf := make([]byte, 64<<10)
	var n int64
	for {
		k, err := in.Read(buf)
		n += int64(k)
		switch {
		case n > limits.MaxFileBytes:
			return n, tooLarge(name, "is larger than %d bytes", limits.MaxFileBytes)
		case n > left:
			return n, tooLarge("", "is larger than %d bytes when unpacked", limits.MaxBytes)
		case n > limits.RatioFloor && n/packed > limits.MaxRatio:
			return n, tooLarge(name, "unpacks to more than %d times its packed size", limits.MaxRatio)
		}
		if _, werr := out.Write(buf[:k]); werr != nil {
			return n, fmt.Errorf("unpack %s: %w", name, werr)
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, refused(name, "cannot be unpacked: %v", err)
		}
	}
}

// packedTime is every packed file's timestamp: the earliest that a zip can hold.
var packedTime = time.Date(1980, time.January, 1, 0, 0, 0, 0, time.UTC)

// Pack writes the bundle as a zip. The same files always give the same bytes: they are sorted, carry
// one timestamp, and keep nothing of their mode but whether they are executable.
func (b *Bundle) Pack(w io.Writer) error { return b.pack(w, zip.Deflate) }

// PackPlain is Pack without compression, for a network that is faster than compressing.
func (b *Bundle) PackPlain(w io.Writer) error { return b.pack(w, zip.Store) }

// PlainSize bounds what PackPlain writes for so many files of so many bytes in all.
func PlainSize(files int, bytes int64) int64 {
	const (
		perFile = 2*maxPathBytes + 256 // its path stands before its content and in the directory
		end     = 1 << 10
	)
	return bytes + int64(files)*perFile + end
}

func (b *Bundle) pack(w io.Writer, method uint16) error {
	root, err := os.OpenRoot(b.Dir)
	if err != nil {
		return fmt.Errorf("pack bundle: %w", err)
	}
	defer root.Close()
	archive := zip.NewWriter(w)
	for _, f := range b.Files {
		header := &zip.FileHeader{Name: f.Path, Method: method, Modified: packedTime}
		header.SetMode(0o644)
		if f.Executable {
			header.SetMode(0o755)
		}
		out, err := archive.CreateHeader(header)
		if err != nil {
			return fmt.Errorf("pack %s: %w", f.Path, err)
		}
		in, err := root.Open(filepath.FromSlash(f.Path))
		if err != nil {
			return fmt.Errorf("pack %s: %w", f.Path, err)
		}
		_, err = io.Copy(out, in)
		in.Close()
		if err != nil {
			return fmt.Errorf("pack %s: %w", f.Path, err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("pack bundle: %w", err)
	}
	return nil
}
