package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Push stores the zip as a version of the model and makes that the model's latest. created is false
// when the same content was there already. A bundle that breaks a rule gives a *model.RefusedError,
// a label with other content ErrConflict.
func (r *Registry) Push(ctx context.Context, name string, zip io.Reader) (v Version, created bool, err error) {
	return r.push(ctx, name, "", func(scratch, dir string) error {
		file := filepath.Join(scratch, "body.zip")
		if err := r.receive(file, zip); err != nil {
			return fmt.Errorf("push %s: %w", name, err)
		}
		step("received")
		return model.Extract(ctx, file, dir, r.limits)
	})
}

// PushImage is Push for a bundle out of a container image, which fill puts into an empty folder. What fill
// writes must keep to the limits of a zip.
func (r *Registry) PushImage(ctx context.Context, name, image string, fill func(dir string) error) (v Version, created bool, err error) {
	return r.push(ctx, name, image, func(_, dir string) error { return fill(dir) })
}

// push stores the bundle that fill puts into dir; scratch is there for what else it writes.
func (r *Registry) push(ctx context.Context, name, image string, fill func(scratch, dir string) error) (v Version, created bool, err error) {
	scratch, clean, err := r.begin(name)
	if err != nil {
		return Version{}, false, err
	}
	defer func() { err = errors.Join(err, clean()) }()

	unpacked := filepath.Join(scratch, "unpacked")
	if err := os.Mkdir(unpacked, 0o700); err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	if err := fill(scratch, unpacked); err != nil {
		return Version{}, false, err
	}
	step("extracted")
	bundle, err := model.Open(unpacked)
	if err != nil {
		return Version{}, false, err
	}
	if v, known, err := r.again(name, image, bundle); known || err != nil {
		return v, false, err
	}
	release := r.blobs.hold(digests(bundle.Files))
	defer r.collect()
	defer release()
	if err := r.keep(bundle); err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	tree, err := r.assemble(ctx, scratch, name, bundle.Files)
	if err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	return r.place(name, image, bundle, tree)
}

// PushFiles is Push for a bundle whose files are named one by one and whose contents are stored
// already. If some are not, it changes nothing and gives a *MissingError. Every rule for a zip holds
// for the list. Of each file it reads Path, Size, Executable and SHA256.
func (r *Registry) PushFiles(ctx context.Context, name string, files []model.File) (v Version, created bool, err error) {
	scratch, clean, err := r.begin(name)
	if err != nil {
		return Version{}, false, err
	}
	defer func() { err = errors.Join(err, clean()) }()

	if files, err = model.CheckList(files, r.limits); err != nil {
		return Version{}, false, err
	}
	release := r.blobs.hold(digests(files))
	defer r.collect()
	defer release()
	missing, err := r.blobs.missing(digests(files))
	if err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	if len(missing) > 0 {
		return Version{}, false, fmt.Errorf("push %s: %w", name, &MissingError{missing})
	}
	tree, err := r.assemble(ctx, scratch, name, files)
	if err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	bundle, err := model.Open(tree)
	if err == nil {
		err = asListed(files, bundle.Files)
	}
	if err != nil {
		// Either the list is wrong or, on a disk that fails, a blob is. Only the first is the client's.
		missing, checkErr := r.blobs.discardDamaged(files)
		if checkErr != nil {
			return Version{}, false, fmt.Errorf("push %s: %w", name, checkErr)
		}
		if len(missing) > 0 {
			return Version{}, false, fmt.Errorf("push %s: %w", name, &MissingError{missing})
		}
		return Version{}, false, err
	}
	return r.place(name, "", bundle, tree)
}

// Missing returns those of the contents, named by their SHA-256, that are not stored. What is stored
// then stays at least for the time that a push takes.
func (r *Registry) Missing(sha256 []string) ([]string, error) {
	if len(sha256) > r.limits.MaxFiles {
		return nil, &model.RefusedError{Rule: fmt.Sprintf("has %d files; %d are allowed", len(sha256), r.limits.MaxFiles), Err: model.ErrTooLarge}
	}
	for _, digest := range sha256 {
		if err := checkDigest(digest); err != nil {
			return nil, err
		}
	}
	r.collect()
	missing, err := r.blobs.missing(sha256)
	if err != nil {
		return nil, fmt.Errorf("look for blobs: %w", err)
	}
	return missing, nil
}

// StoreBlob stores a content for a later PushFiles. created is false when it was there already; then
// nothing is read. Content that is not what sha256 says, or too large, gives a *model.RefusedError.
func (r *Registry) StoreBlob(sha256 string, content io.Reader) (created bool, err error) {
	if err := checkDigest(sha256); err != nil {
		return false, err
	}
	created, err = r.blobs.receive(sha256, content, min(r.maxZip, r.limits.MaxFileBytes))
	if err != nil {
		return false, fmt.Errorf("store blob: %w", err)
	}
	return created, nil
}

func checkDigest(s string) error {
	if model.ValidSHA256(s) {
		return nil
	}
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return fmt.Errorf("%w sha256 %q: want 64 lower-case hex digits", backend.ErrInvalid, s)
}

// begin makes a directory that a push can work in until clean is called.
func (r *Registry) begin(name string) (scratch string, clean func() error, err error) {
	if err := backend.CheckName("model", name); err != nil {
		return "", nil, err
	}
	scratch, err = os.MkdirTemp(filepath.Join(r.dir, incoming), "push-")
	if err != nil {
		return "", nil, fmt.Errorf("push %s: %w", name, err)
	}
	return scratch, func() error { return os.RemoveAll(scratch) }, nil
}

func (r *Registry) receive(file string, zip io.Reader) error {
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(zip, r.maxZip+1))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil && n > r.maxZip {
		err = &model.RefusedError{Rule: fmt.Sprintf("is larger than the %d bytes that a push may send", r.maxZip), Err: model.ErrTooLarge}
	}
	return err
}

func digests(files []model.File) []string {
	out := make([]string, 0, len(files))
	for _, f := range files {
		out = append(out, f.SHA256)
	}
	return out
}

// keep makes blobs of the bundle's files, which are gone from its directory then. The caller holds
// them.
func (r *Registry) keep(bundle *model.Bundle) error {
	file := func(f model.File) string { return filepath.Join(bundle.Dir, filepath.FromSlash(f.Path)) }
	for _, f := range bundle.Files {
		if err := os.Chmod(file(f), blobOf(f).mode()); err != nil {
			return err
		}
	}
	if err := flush(bundle.Dir); err != nil {
		return err
	}
	for _, f := range bundle.Files {
		if err := r.blobs.keep(file(f), blobOf(f)); err != nil {
			return err
		}
		step("blob kept")
	}
	return nil
}

// assemble makes a directory in scratch that has the files, and returns it. Their paths must have
// passed model's rules. The caller holds the blobs; one that is not there gives a *MissingError.
func (r *Registry) assemble(ctx context.Context, scratch, name string, files []model.File) (tree string, err error) {
	tree = filepath.Join(scratch, name) // a bundle without a manifest takes its directory's name
	if err := os.Mkdir(tree, 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(tree, 0o755); err != nil { // Mkdir obeyed the umask
		return "", err
	}
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		path := filepath.Join(tree, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		err := r.blobs.place(blobOf(f), path)
		if errors.Is(err, os.ErrNotExist) {
			return "", &MissingError{[]string{f.SHA256}}
		}
		if err != nil {
			return "", err
		}
		step("linked")
	}
	step("assembled")
	return tree, nil
}

// asListed reports whether the files that were found are the ones of the list.
func asListed(listed, found []model.File) error {
	if len(listed) != len(found) {
		return fmt.Errorf("assemble bundle: %d files of %d", len(found), len(listed))
	}
	for i, want := range listed {
		switch got := found[i]; {
		case got.Path != want.Path || got.SHA256 != want.SHA256 || got.Executable != want.Executable:
			return fmt.Errorf("assemble bundle: %s is not what the list says", want.Path)
		case got.Size != want.Size:
			return &model.RefusedError{File: want.Path, Rule: fmt.Sprintf("has %d bytes; the list says %d", got.Size, want.Size)}
		}
	}
	return nil
}

// again reports whether the bundle is a version that is stored, and makes that the latest then.
func (r *Registry) again(name, image string, bundle *model.Bundle) (Version, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.renew(name, image, bundle)
}

// renew is again for a caller that has mu.
func (r *Registry) renew(name, image string, bundle *model.Bundle) (Version, bool, error) {
	known, err := r.record(name, bundle.Version.ID)
	if errors.Is(err, backend.ErrNotFound) {
		return Version{}, false, nil
	}
	if err != nil {
		return Version{}, false, err
	}
	if known.CodeDigest != bundle.Version.CodeDigest || known.CoefficientsDigest != bundle.Version.CoefficientsDigest {
		return Version{}, false, fmt.Errorf("%w: version %s of %s is stored with other content (%s); change the label of what you changed",
			ErrConflict, bundle.Version.ID, name, differences(known.Files, bundle.Files))
	}
	known.PushedAt, known.Image = time.Now().UTC(), image
	return known, true, r.save(known)
}

// place gives a complete, checked bundle, whose files are in tree, its name. The caller holds its
// blobs.
func (r *Registry) place(name, image string, bundle *model.Bundle, tree string) (Version, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, known, err := r.renew(name, image, bundle); known || err != nil {
		return v, false, err
	}
	now := time.Now().UTC()
	v := Version{Version: bundle.Version, Model: name, Image: image, Runtime: bundle.Runtime, CreatedAt: now, PushedAt: now, Files: bundle.Files}
	v.count()
	v.CodeNewBytes, v.CoefficientsNewBytes = r.blobs.fresh(v.Files)
	if err := r.move(tree, name, v.ID); err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	step("before the record")
	if err := r.save(v); err != nil {
		return Version{}, false, err
	}
	step("recorded")
	r.blobs.use(v.Files)
	return v, true, nil
}

// move brings tree to where a version's files are, and everything of it to the disk.
func (r *Registry) move(tree, name, version string) error {
	parent := filepath.Join(r.dir, name)
	if err := os.MkdirAll(parent, 0o711); err != nil {
		return err
	}
	if err := os.Chmod(parent, 0o711); err != nil {
		return err
	}
	// What is there without a record is left of a push or a delete that failed.
	if _, err := os.Lstat(r.path(name, version)); err == nil {
		if err := r.clear(name, version); err != nil {
			return err
		}
	}
	if err := os.Rename(tree, r.path(name, version)); err != nil {
		return err
	}
	step("renamed")
	return flush(parent)
}

// differences names up to five files that are not the same in both lists.
func differences(old, new []model.File) string {
	type state struct {
		sum        string
		executable bool
	}
	was := make(map[string]state, len(old))
	for _, f := range old {
		was[f.Path] = state{f.SHA256, f.Executable}
	}
	var out []string
	for _, f := range new {
		before, existed := was[f.Path]
		switch {
		case !existed:
			out = append(out, f.Path+" added")
		case before != state{f.SHA256, f.Executable}:
			out = append(out, f.Path+" changed")
		}
		delete(was, f.Path)
	}
	for path := range was {
		out = append(out, path+" removed")
	}
	sort.Strings(out)
	const shown = 5
	if len(out) > shown {
		out = append(out[:shown], fmt.Sprintf("and %d more", len(out)-shown))
	}
	return strings.Join(out, ", ")
}
