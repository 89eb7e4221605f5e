// Package scratch keeps the temporary folders of a running watchdog, and removes those whose owner was
// killed before it could.
//
// A folder belongs to the process that holds the lock on a file in it. The kernel lets go of the lock
// when the process ends, however it ends. What is put into a folder may not enter here.
package scratch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	prefix = "fwatchdog-"
	// lockName tells a watchdog's folder from one that only has such a name.
	lockName = "fwatchdog.lock"
)

// attempts bounds New: only a Sweep in the same instant makes it try again.
const attempts = 100

// Folder is a private folder of this process in the temporary directory.
type Folder struct {
	Path string
	lock *os.File
}

// New makes a folder whose name tells what it is for. It must be removed.
func New(what string) (*Folder, error) {
	for range attempts {
		path, err := os.MkdirTemp("", prefix+what+"-")
		if err != nil {
			return nil, fmt.Errorf("make a temporary folder: %w", err)
		}
		lock, err := hold(path, os.O_CREATE|os.O_EXCL)
		switch {
		case err == nil:
			return &Folder{path, lock}, nil
		case !errors.Is(err, errTaken) && !errors.Is(err, os.ErrNotExist):
			_ = os.RemoveAll(path)
			return nil, fmt.Errorf("lock a temporary folder: %w", err)
		}
	}
	return nil, fmt.Errorf("make a temporary folder: %d in a row were taken away", attempts)
}

// Remove removes the folder and what is in it. It is safe to call more than once.
func (f *Folder) Remove() {
	empty(f.Path)
	f.lock.Close()
}

// Sweep removes the folders of this user's watchdogs that are gone, and returns how many. It is safe
// while others are started and swept: a folder whose owner lives stays.
func Sweep() (removed int) {
	dir := os.TempDir()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0 // New will say so
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !strings.HasPrefix(e.Name(), prefix) || !own(path) {
			continue
		}
		lock, err := hold(path, 0)
		if err != nil {
			continue
		}
		empty(path)
		lock.Close()
		removed++
	}
	return removed
}

// own reports whether path is a folder, not a link to one, that belongs to this user alone.
func own(path string) bool {
	var stat unix.Stat_t
	return unix.Lstat(path, &stat) == nil && stat.Mode&(unix.S_IFMT|0o077) == unix.S_IFDIR && int(stat.Uid) == os.Geteuid()
}

var errTaken = errors.New("another process holds it")

// hold locks the folder at path until the returned file is closed.
func hold(path string, flag int) (*os.File, error) {
	name := filepath.Join(path, lockName)
	lock, err := os.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW|flag, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errTaken
		}
		return nil, err
	}
	// Whoever held it before may have removed it meanwhile.
	mine, err := lock.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Lstat(name); err == nil && !os.SameFile(mine, there) {
			err = errTaken
		}
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// empty removes a folder, its lock last: should this be interrupted, the next Sweep goes on.
func empty(path string) {
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		if e.Name() != lockName {
			_ = os.RemoveAll(filepath.Join(path, e.Name()))
		}
	}
	_ = os.RemoveAll(path)
}
