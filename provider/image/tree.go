package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// tree is a bundle that is put together of an image's layers, the uppermost first: what a layer has, or says was
// removed, hides what lower ones have there.
type tree struct {
	root   *os.Root
	limits model.Limits

	files int
	bytes int64
	gone  map[string]bool // nothing of it, or below it, comes from lower layers
	dirs  map[string]bool // a folder, which a file of a lower layer cannot be
}

func newTree(dir string, limits model.Limits) (*tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &tree{root: root, limits: limits, gone: map[string]bool{}, dirs: map[string]bool{}}, nil
}

func (t *tree) close() { t.root.Close() }

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// add takes a layer's files. folder is where the bundle is in it. changed is false when the layer had nothing for it.
func (t *tree) add(ctx context.Context, layer io.Reader, folder string) (changed bool, err error) {
	gone := map[string]bool{} // for the layers below; files of this one may stand beside
	archive := tar.NewReader(layer)
	for {
		if err := ctx.Err(); err != nil {
			return changed, err
		}
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return changed, fmt.Errorf("read layer: %w", err)
		}
		full := strings.TrimPrefix(path.Clean("/"+entry.Name), "/")
		dir, base := path.Split(full)
		dir = path.Clean(dir)
		if hides, ok := strings.CutPrefix(base, whiteout); ok {
			hidden := path.Join(dir, hides)
			if base == opaque {
				hidden = dir
			}
			if inside, ok := within(hidden, folder); ok {
				if err := t.count(inside); err != nil {
					return changed, err
				}
				gone[inside], changed = true, true
			}
			continue
		}
		if full == folder || strings.HasPrefix(folder, full+"/") {
			if entry.Typeflag != tar.TypeDir {
				return changed, &model.RefusedError{File: "/" + full, Rule: "is not a folder in this image"}
			}
			continue
		}
		inside, ok := strings.CutPrefix(full, folder+"/")
		if !ok || model.Ignored(inside) || t.hidden(inside) {
			continue
		}
		changed = true
		if err := t.put(archive, entry, inside, gone); err != nil {
			return changed, err
		}
	}
	for name := range gone {
		t.gone[name] = true
	}
	// What is left is padding; reading it has the layer's digest checked.
	if _, err := io.Copy(io.Discard, layer); err != nil {
		return changed, fmt.Errorf("read layer: %w", err)
	}
	return changed, nil
}

// within is the path inside folder of something that is in it, is it, or has it: "." for the last two.
func within(full, folder string) (string, bool) {
	if full == folder || full == "." || strings.HasPrefix(folder, full+"/") {
		return ".", true
	}
	return strings.CutPrefix(full, folder+"/")
}

// complete reports whether lower layers can have nothing to add.
func (t *tree) complete() bool { return t.gone["."] }

func (t *tree) hidden(name string) bool {
	for ; name != "."; name = path.Dir(name) {
		if t.gone[name] {
			return true
		}
	}
	return t.gone["."]
}

// count takes note of an entry, whatever it is: each is remembered until all layers are read.
func (t *tree) count(name string) error {
	if t.files++; t.files > t.limits.MaxFiles {
		return tooLarge("", "has more than %d entries, which is what is allowed", t.limits.MaxFiles)
	}
	if name == "." {
		return nil
	}
	return model.CheckPath(name)
}

func (t *tree) put(content io.Reader, entry *tar.Header, name string, gone map[string]bool) error {
	if err := t.count(name); err != nil {
		return err
	}
	switch entry.Typeflag {
	case tar.TypeDir:
		t.dirs[name] = true
		return nil
	case tar.TypeReg:
	default:
		return &model.RefusedError{File: name, Rule: "is a link or a special file: a bundle holds only files and folders"}
	}
	if t.dirs[name] {
		return nil
	}
	for parent := path.Dir(name); parent != "."; parent = path.Dir(parent) {
		t.dirs[parent] = true
	}
	gone[name] = true
	if err := t.root.MkdirAll(filepath.FromSlash(path.Dir(name)), 0o755); err != nil {
		return &model.RefusedError{File: name, Rule: "is below a file of the same image"}
	}
	perm := fs.FileMode(0o644)
	if entry.Mode&0o111 != 0 {
		perm = 0o755
	}
	out, err := t.root.OpenFile(filepath.FromSlash(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if errors.Is(err, fs.ErrExist) {
		return &model.RefusedError{File: name, Rule: "is in one layer twice"}
	}
	if err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	n, err := io.Copy(out, io.LimitReader(content, min(t.limits.MaxFileBytes, t.limits.MaxBytes-t.bytes)+1))
	t.bytes += n
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	switch {
	case err != nil:
		return fmt.Errorf("unpack %s: %w", name, err)
	case n > t.limits.MaxFileBytes:
		return tooLarge(name, "is larger than %d bytes", t.limits.MaxFileBytes)
	case t.bytes > t.limits.MaxBytes:
		return tooLarge("", "is larger than %d bytes when unpacked", t.limits.MaxBytes)
	}
	return nil
}

func tooLarge(file, rule string, args ...any) error {
	return &model.RefusedError{File: file, Rule: fmt.Sprintf(rule, args...), Err: model.ErrTooLarge}
}
