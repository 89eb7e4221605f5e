package model

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// digestPrefix is how many hex digits of a digest stand in a version without a label.
const digestPrefix = 12

// File is one file of a bundle.
type File struct {
	Path        string `json:"path"` // slash-separated, relative to the bundle's root
	Size        int64  `json:"size"`
	Executable  bool   `json:"executable,omitempty"`
	Coefficient bool   `json:"coefficient,omitempty"`
	SHA256      string `json:"sha256"` // of the content, hex
}

// Version names a bundle's content. ID is Code_Coefficients; each half is its label, or the first
// 12 hex digits of its digest.
type Version struct {
	ID                 string `json:"version"`
	Code               string `json:"code"`
	Coefficients       string `json:"coefficients"`
	CodeDigest         string `json:"code_digest"`
	CoefficientsDigest string `json:"coefficients_digest"`
}

// Bundle is a model that passed every rule. Its files may be read as long as Dir is left alone.
type Bundle struct {
	Manifest
	Version Version
	Dir     string // absolute
	Files   []File // sorted by path
}

// Open reads and checks the bundle in dir. It reads every file once, for the digests. A bundle that
// breaks a rule gives a *RefusedError; other errors come from the file system.
func Open(dir string) (*Bundle, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	return open(abs, filepath.Base(abs))
}

// Load opens a bundle that is a directory or a zip; a zip is unpacked into a new directory below
// scratch first. Bundle.Dir says where the files are.
func Load(ctx context.Context, file, scratch string, limits Limits) (*Bundle, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	if info.IsDir() {
		return Open(file)
	}
	dir, err := os.MkdirTemp(scratch, "bundle-")
	if err != nil {
		return nil, fmt.Errorf("unpack bundle: %w", err)
	}
	if err := Extract(ctx, file, dir, limits); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	b, err := open(dir, strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return b, nil
}

func open(dir, fallbackName string) (*Bundle, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	defer root.Close()

	b := &Bundle{Dir: dir}
	fallbackName = validName(fallbackName)
	var manifest, entry []byte
	if info, err := root.Lstat(ManifestName); err == nil && !info.Mode().IsRegular() {
		return nil, refused(ManifestName, "is not a file")
	}
	if manifest, err = root.ReadFile(ManifestName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	if b.Manifest, err = parseManifest(manifest); err != nil {
		return nil, err
	}
	if b.Files, err = listFiles(root); err != nil {
		return nil, err
	}
	if err := b.resolve(b.Files, fallbackName); err != nil {
		return nil, err
	}
	if entry, err = root.ReadFile(filepath.FromSlash(b.Entry)); err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	if !bytes.Contains(entry, []byte("predict")) {
		return nil, refused(b.Entry, "does not define predict(request)")
	}
	if err := b.digest(root, manifest); err != nil {
		return nil, err
	}
	return b, nil
}

// validName makes a name that ValidName accepts of a folder's or zip's name.
func validName(s string) string {
	name := strings.Map(func(r rune) rune {
		if (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9') {
			return r
		}
		return '-'
	}, strings.ToLower(s))
	if len(name) > 63 {
		name = name[:63]
	}
	if name = strings.Trim(name, "-"); name == "" {
		return "model"
	}
	return name
}

// Ignored reports whether a file is a by-product of running, editing or keeping a bundle rather
// than a part of it. Such files are in no digest and no zip: running a model must not change its
// version.
func Ignored(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "__pycache__", ".git", ".venv", ".DS_Store", "__MACOSX", ".ipynb_checkpoints",
			".pytest_cache", ".ruff_cache", ".mypy_cache", ".Rhistory", ".RData", ".Rproj.user":
			return true
		}
	}
	return strings.HasSuffix(name, ".pyc")
}

// listFiles returns the bundle's files sorted by path, without their digests.
func listFiles(root *os.Root) ([]File, error) {
	var files []File
	err := fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if Ignored(name) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entry.IsDir() {
			return nil
		}
		if err := CheckPath(name); err != nil {
			return err
		}
		if !entry.Type().IsRegular() {
			return refused(name, "is a %s: a bundle holds only files and folders", typeName(entry.Type()))
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		files = append(files, File{Path: name, Size: info.Size(), Executable: info.Mode()&0o111 != 0})
		return nil
	})
	var refusal *RefusedError
	if err != nil && !errors.As(err, &refusal) {
		err = fmt.Errorf("list bundle: %w", err)
	}
	sort.Slice(files, func(i, j int) bool { return files[i].Path < files[j].Path })
	return files, err
}

const maxPathBytes = 1024

// CheckPath holds a slash-separated path inside a bundle to what every file system and every shell can take.
func CheckPath(name string) error {
	switch {
	case !utf8.ValidString(name):
		return refused(fmt.Sprintf("%q", name), "has a name that is not UTF-8")
	case path.IsAbs(name) || strings.Contains(name, `\`) || strings.ContainsFunc(name, unicode.IsControl):
		return refused(fmt.Sprintf("%q", name), "must be a relative path without backslashes or control characters")
	case !fs.ValidPath(name) || name == ".":
		return refused(fmt.Sprintf("%q", name), "leaves the bundle")
	case len(name) > maxPathBytes:
		return refused(name[:64]+"…", "has a path longer than %d bytes", maxPathBytes)
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > 255 {
			return refused(part[:64]+"…", "has a name longer than 255 bytes")
		}
	}
	return nil
}

func typeName(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeSymlink != 0:
		return "link"
	case mode&fs.ModeDevice != 0:
		return "device"
	case mode&fs.ModeNamedPipe != 0:
		return "pipe"
	case mode&fs.ModeSocket != 0:
		return "socket"
	}
	return "special file"
}

// digest fills every file's SHA-256 and the version.
//
// A half's digest is the SHA-256 of one line a file, sorted by path:
//
//	path NUL ("x" if executable, else "-") NUL hex(SHA-256 of content) LF
//
// with model.yml's content taken less the lines of its two labels.
func (b *Bundle) digest(root *os.Root, manifest []byte) error {
	code, coefficients := sha256.New(), sha256.New()
	for i := range b.Files {
		f := &b.Files[i]
		content := sha256.New()
		in, err := root.Open(filepath.FromSlash(f.Path))
		if err != nil {
			return fmt.Errorf("digest bundle: %w", err)
		}
		_, err = io.Copy(content, in)
		in.Close()
		if err != nil {
			return fmt.Errorf("digest bundle: %w", err)
		}
		f.SHA256 = hex.EncodeToString(content.Sum(nil))

		counted := f.SHA256
		if f.Path == ManifestName {
			kept, err := withoutLabels(manifest)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(kept)
			counted = hex.EncodeToString(sum[:])
		}
		mode, half := "-", code
		if f.Executable {
			mode = "x"
		}
		if f.Coefficient {
			half = coefficients
		}
		fmt.Fprintf(half, "%s\x00%s\x00%s\n", f.Path, mode, counted)
	}
	v := Version{
		CodeDigest:         hex.EncodeToString(code.Sum(nil)),
		CoefficientsDigest: hex.EncodeToString(coefficients.Sum(nil)),
	}
	v.Code, v.Coefficients = v.CodeDigest[:digestPrefix], v.CoefficientsDigest[:digestPrefix]
	if b.CodeVersion != "" {
		v.Code = b.CodeVersion
	}
	if b.CoefficientsVersion != "" {
		v.Coefficients = b.CoefficientsVersion
	}
	v.ID = v.Code + "_" + v.Coefficients
	b.Version = v
	return nil
}
