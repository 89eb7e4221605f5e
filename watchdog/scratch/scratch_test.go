package scratch

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// abandon leaves a folder as its owner does who is killed: the kernel closes the lock, nothing else.
func abandon(t *testing.T) string {
	t.Helper()
	f, err := New("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.Path, "left"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.lock.Close()
	return f.Path
}

func TestSweepRemovesWhatTheDeadLeftAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	living, err := New("test")
	if err != nil {
		t.Fatal(err)
	}
	dead := abandon(t)
	open := abandon(t) // others may write into it: not one of ours
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	unlocked := filepath.Join(dir, "fwatchdog-notes")
	elsewhere := filepath.Join(dir, "other")
	for _, path := range []string{unlocked, elsewhere} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(elsewhere, lockName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "fwatchdog-link")
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}
	if n := Sweep(); n != 1 || exists(dead) {
		t.Errorf("removed %d folders, and the dead one's is there: %v", n, exists(dead))
	}
	for _, path := range []string{living.Path, open, unlocked, link, filepath.Join(elsewhere, lockName)} {
		if !exists(path) {
			t.Errorf("%s is gone", path)
		}
	}
	living.Remove()
	living.Remove()
	if exists(living.Path) {
		t.Error("a removed folder is there")
	}
}

// A folder is not yet locked in the moment it is made, and no longer known when a sweep has just ended.
func TestNoFolderIsSweptFromUnderItsOwner(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var owners, sweepers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		sweepers.Add(1)
		go func() {
			defer sweepers.Done()
			for {
				select {
				case <-stop:
					return
				default:
					Sweep()
				}
			}
		}()
	}
	for range 8 {
		owners.Add(1)
		go func() {
			defer owners.Done()
			for range 200 {
				f, err := New("test")
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(f.Path, "mine"), nil, 0o600); err != nil {
					t.Error(err)
				}
				f.Remove()
			}
		}()
	}
	owners.Wait()
	close(stop)
	sweepers.Wait()
	if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
		t.Errorf("%d folders are left", len(left))
	}
}
