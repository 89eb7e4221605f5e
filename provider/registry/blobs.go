package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// grace is how long a blob is kept that was uploaded and that no version uses: a push uploads what
// is missing before it says of which files the version is made.
const grace = time.Hour

// MissingError says which blobs a push needs that are not there. When they are uploaded, the same
// push can succeed.
type MissingError struct {
	SHA256 []string
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%d of the files are not stored yet: upload them first", len(e.SHA256))
}

// blob names a content. One that is executable is another file than one that is not, since a
// version's file is a hard link, which has the blob's mode.
type blob struct {
	sha256     string
	executable bool
}

func blobOf(f model.File) blob { return blob{f.SHA256, f.Executable} }

// other is the same content with the other mode.
func (b blob) other() blob { return blob{b.sha256, !b.executable} }

func (b blob) mode() fs.FileMode {
	if b.executable {
		return 0o555
	}
	return 0o444
}

// executableSuffix stands behind the digest in the name of an executable blob.
const executableSuffix = ".x"

// blobs keeps each content once: a file that is named by its SHA-256, is complete and on disk before
// it has that name, and never changes. A blob goes when no record uses it and no push holds it.
type blobs struct {
	dir     string // blobs below folders of their first two digits
	scratch string // where a blob is written before it has its name; on the file system of dir
	link    func(old, new string) error

	mu     sync.Mutex // covers what follows and every removal
	used   map[blob]int
	held   map[string]int     // pushes and uploads that need the content now
	unused map[blob]time.Time // stored, but no record uses it; since when
}

// openBlobs finds what is stored below dir. Nothing is used until use is called.
func openBlobs(dir, scratch string) (*blobs, error) {
	b := &blobs{
		dir: dir, scratch: scratch, link: os.Link,
		used: map[blob]int{}, held: map[string]int{}, unused: map[blob]time.Time{},
	}
	// Functions reach the content through their version's directory only.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return b, filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		digest, executable := strings.CutSuffix(entry.Name(), executableSuffix)
		if !model.ValidSHA256(digest) {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		b.unused[blob{digest, executable}] = info.ModTime()
		return nil
	})
}

func (b *blobs) path(x blob) string {
	name := x.sha256
	if x.executable {
		name += executableSuffix
	}
	return filepath.Join(b.dir, x.sha256[:2], name)
}

// find returns the blob that has the content, with the mode that is wanted if both are there.
func (b *blobs) find(want blob) (found blob, err error) {
	for _, x := range []blob{want, want.other()} {
		if _, err := os.Lstat(b.path(x)); !errors.Is(err, fs.ErrNotExist) {
			return x, err
		}
	}
	return want, fs.ErrNotExist
}

// has reports whether the blob is stored, with this mode.
func (b *blobs) has(x blob) bool {
	_, err := os.Lstat(b.path(x))
	return err == nil
}

// hold keeps the contents from being collected until release is called, whether or not they are
// there already. So what missing does not name after hold is there until release.
func (b *blobs) hold(digests []string) (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, digest := range digests {
		b.held[digest]++
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, digest := range digests {
			if b.held[digest]--; b.held[digest] == 0 {
				delete(b.held, digest)
			}
		}
	}
}

// missing returns the digests whose content is not there, each once. For what is there and unused it
// begins the grace anew: whoever asks is about to push it.
func (b *blobs) missing(digests []string) ([]string, error) {
	release := b.hold(digests)
	defer release()
	out := []string{}
	seen := make(map[string]bool, len(digests))
	now := time.Now()
	for _, digest := range digests {
		if seen[digest] {
			continue
		}
		seen[digest] = true
		found, err := b.find(blob{sha256: digest})
		if errors.Is(err, fs.ErrNotExist) {
			out = append(out, digest)
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := b.renew(found, now); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (b *blobs) renew(x blob, now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, unused := b.unused[x]; !unused {
		return nil
	}
	b.unused[x] = now
	return os.Chtimes(b.path(x), now, now) // for the next Open
}

// receive stores what content gives, if that is what digest says. At most limit bytes are read. It
// reports false, and reads nothing, when the content is there already.
func (b *blobs) receive(digest string, content io.Reader, limit int64) (created bool, err error) {
	release := b.hold([]string{digest})
	defer release()
	if lacks, err := b.missing([]string{digest}); err != nil || len(lacks) == 0 {
		return false, err
	}
	out, err := os.CreateTemp(b.scratch, "blob-")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.Remove(out.Name()) }() // gone already when it got its name
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, sum), io.LimitReader(content, limit+1))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	switch got := hex.EncodeToString(sum.Sum(nil)); {
	case err != nil:
		return false, err
	case n > limit:
		return false, &model.RefusedError{Rule: fmt.Sprintf("has a file larger than the %d bytes that an upload may have", limit), Err: model.ErrTooLarge}
	case got != digest:
		return false, &model.RefusedError{File: "blob " + digest, Rule: fmt.Sprintf("is not what came: that has the SHA-256 %s", got)}
	}
	step("blob received")
	return true, b.name(out.Name(), blob{sha256: digest})
}

// name gives a complete file its blob's mode and name, and brings both to the disk.
func (b *blobs) name(file string, x blob) error {
	if err := os.Chmod(file, x.mode()); err != nil {
		return err
	}
	if err := syncPath(file); err != nil {
		return err
	}
	step("blob flushed")
	if err := b.rename(file, x); err != nil {
		return err
	}
	step("blob named")
	return syncPath(filepath.Dir(b.path(x)))
}

// rename gives a file that is on the disk, with its blob's mode, its name. The caller holds the
// content and flushes the directory.
func (b *blobs) rename(file string, x blob) error {
	if err := b.shard(x); err != nil {
		return err
	}
	if err := os.Rename(file, b.path(x)); err != nil {
		return err
	}
	b.stored(x)
	return nil
}

// stored takes note of a blob that has its name now.
func (b *blobs) stored(x blob) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used[x] == 0 {
		b.unused[x] = time.Now()
	}
}

// shard makes the folder that x belongs in.
func (b *blobs) shard(x blob) error {
	err := os.Mkdir(filepath.Dir(b.path(x)), 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncPath(b.dir)
}

// keep makes a blob of a file that is on the disk with the blob's mode, unless there is one with the
// same content. The caller holds the content and flushes afterwards.
//
// A blob that is there already is read again: the file in hand is known to be right, so this is the
// moment to replace one that a failing disk has changed.
func (b *blobs) keep(file string, x blob) error {
	same, err := b.intact(x)
	if err != nil || same {
		return err
	}
	return b.rename(file, x)
}

func (b *blobs) intact(x blob) (bool, error) {
	in, err := os.Open(b.path(x))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer in.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, in); err != nil {
		return false, err
	}
	return hex.EncodeToString(sum.Sum(nil)) == x.sha256, nil
}

// place puts the blob at path, as a hard link where the file system can, and makes it first from
// the one with the other mode where only that is there. The caller holds the content.
func (b *blobs) place(x blob, path string) error {
	found, err := b.find(x)
	if err != nil {
		return err
	}
	if found != x {
		scratch, err := os.MkdirTemp(b.scratch, "mode-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(scratch)
		twin := filepath.Join(scratch, "blob")
		if err := copyFile(b.path(found), twin, x.mode()); err != nil {
			return err
		}
		if err := b.name(twin, x); err != nil {
			return err
		}
	}
	return b.linkOrCopy(b.path(x), path, x.mode())
}

// linkOrCopy copies where the file system has no hard links, or no more of them for this file.
func (b *blobs) linkOrCopy(old, new string, mode fs.FileMode) error {
	err := b.link(old, new)
	if !refusesLink(err) {
		return err
	}
	return copyFile(old, new, mode)
}

func refusesLink(err error) bool {
	for _, refusal := range []error{unix.EXDEV, unix.EMLINK, unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

func copyFile(old, new string, mode fs.FileMode) error {
	in, err := os.Open(old)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(new, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(mode), out.Close())
}

// adopt makes a blob of a version's own file, which was stored before there were blobs. The file is
// not read: whatever is made of a blob is checked when it is made.
func (b *blobs) adopt(file string, x blob) error {
	if err := b.shard(x); err != nil {
		return err
	}
	if err := os.Chmod(file, x.mode()); err != nil {
		return err
	}
	return b.link(file, b.path(x))
}

// discardDamaged reads the files' blobs, removes those that are not what their names say, and returns
// the digests of what is missing then. Versions that use such a blob keep their link to it.
func (b *blobs) discardDamaged(files []model.File) ([]string, error) {
	digests := make([]string, 0, len(files))
	for _, f := range files {
		digests = append(digests, f.SHA256)
		for _, x := range []blob{blobOf(f), blobOf(f).other()} {
			same, err := b.intact(x)
			if err != nil {
				return nil, err
			}
			if same {
				continue
			}
			if err := b.remove(x); err != nil {
				return nil, err
			}
		}
	}
	return b.missing(digests)
}

func (b *blobs) remove(x blob) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.unused, x)
	if err := os.Remove(b.path(x)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// use takes note of a record. The caller holds the contents.
func (b *blobs) use(files []model.File) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range files {
		x := blobOf(f)
		b.used[x]++
		delete(b.unused, x)
	}
	// An upload does not know whether its file will be executable. When it is, the blob that came is
	// one too many, unless another version uses it.
	for _, f := range files {
		if x := blobOf(f).other(); b.used[x] == 0 {
			b.abandon(x)
		}
	}
}

// drop takes note that a record is gone.
func (b *blobs) drop(files []model.File) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range files {
		x := blobOf(f)
		if b.used[x]--; b.used[x] == 0 {
			delete(b.used, x)
			b.unused[x] = time.Time{}
		}
	}
}

// abandon lets an unused blob go without grace. The caller has mu.
func (b *blobs) abandon(x blob) {
	if _, unused := b.unused[x]; unused {
		b.unused[x] = time.Time{}
	}
}

// fresh returns how many bytes of the code and of the coefficients no record uses yet.
func (b *blobs) fresh(files []model.File) (code, coefficients int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := map[blob]bool{}
	for _, f := range files {
		x := blobOf(f)
		if b.used[x] > 0 || seen[x] {
			continue
		}
		seen[x] = true
		if f.Coefficient {
			coefficients += f.Size
		} else {
			code += f.Size
		}
	}
	return code, coefficients
}

// collect removes every blob that no record uses and nobody holds, except those that were stored
// less than grace before now and may be waiting for their push. What cannot be removed is tried
// again the next time.
func (b *blobs) collect(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for x, since := range b.unused {
		if b.held[x.sha256] > 0 || now.Sub(since) < grace {
			continue
		}
		if err := os.Remove(b.path(x)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			slog.Warn("a blob that no version uses cannot be removed", "error", err)
			continue
		}
		delete(b.unused, x)
		step("blob removed")
	}
}
