package reload

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// taken is what load was given, of which it refuses what begins with "bad".
type taken struct {
	mu       sync.Mutex
	contents []string
}

func (k *taken) load(contents [][]byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range contents {
		if bytes.HasPrefix(c, []byte("bad")) {
			return errors.New("refused " + string(c))
		}
	}
	k.contents = append(k.contents, string(bytes.Join(contents, []byte("+"))))
	return nil
}

func (k *taken) want(t *testing.T, contents ...string) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if diff := cmp.Diff(contents, k.contents); diff != "" {
		t.Errorf("taken: %s", diff)
	}
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, to, name string) {
	t.Helper()
	if err := os.Symlink(to, name+".next"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".next", name); err != nil {
		t.Fatal(err)
	}
}

func TestChangesAreTakenUp(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, dir string){
		"written in place": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "a"), "new") },
		"of the same length and time": func(t *testing.T, dir string) {
			file := filepath.Join(dir, "a")
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			write(t, file, "new")
			if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
		},
		"renamed into place": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "a.part"), "new")
			if err := os.Rename(filepath.Join(dir, "a.part"), filepath.Join(dir, "a")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "a"), "old")
			write(t, filepath.Join(dir, "b"), "b")
			synctest.Test(t, func(t *testing.T) {
				var k taken
				w, err := Start([]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}, slog.New(slog.DiscardHandler), k.load)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				time.Sleep(10 * Every)
				k.want(t, "old+b")
				change(t, dir)
				time.Sleep(2*Every + time.Millisecond)
				k.want(t, "old+b", "new+b")
				time.Sleep(10 * Every)
				k.want(t, "old+b", "new+b")
			})
		})
	}
}

// Kubernetes mounts a secret as links to ..data/NAME, where ..data is a link that it swaps.
func TestDirectorySwappedBehindALinkIsTakenUp(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{"1", "2"} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version, "a"), "a"+version)
		write(t, filepath.Join(dir, version, "b"), "b"+version)
	}
	link(t, "1", filepath.Join(dir, "..data"))
	link(t, "..data/a", filepath.Join(dir, "a"))
	link(t, "..data/b", filepath.Join(dir, "b"))
	synctest.Test(t, func(t *testing.T) {
		var k taken
		w, err := Start([]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}, slog.New(slog.DiscardHandler), k.load)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		link(t, "2", filepath.Join(dir, "..data"))
		time.Sleep(2*Every + time.Millisecond)
		k.want(t, "a1+b1", "a2+b2")
	})
}

func TestFilesThatStillChangeAreNotTakenUpYet(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "a1")
	write(t, b, "b1")
	synctest.Test(t, func(t *testing.T) {
		var k taken
		w, err := Start([]string{a, b}, slog.New(slog.DiscardHandler), k.load)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		write(t, a, "a2")
		time.Sleep(Every + time.Millisecond)
		write(t, b, "b2")
		time.Sleep(2 * Every)
		k.want(t, "a1+b1", "a2+b2")
	})
}

func TestWhatIsRefusedIsLoggedOnceAndTriedAgain(t *testing.T) {
	dir := t.TempDir()
	a := filepath.Join(dir, "a")
	write(t, a, "a1")
	synctest.Test(t, func(t *testing.T) {
		var k taken
		var out bytes.Buffer
		w, err := Start([]string{a}, slog.New(slog.NewTextHandler(&out, nil)), k.load)
		if err != nil {
			t.Fatal(err)
		}
		for _, content := range []string{"bad", "", strings.Repeat("long", maxBytes)} {
			if content == "" {
				err = os.Remove(a)
			} else {
				err = os.WriteFile(a, []byte(content), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * Every)
		}
		k.want(t, "a1")
		write(t, a, "a2")
		time.Sleep(2*Every + time.Millisecond)
		k.want(t, "a1", "a2")
		w.Close()
		w.Close()
		write(t, a, "a3")
		time.Sleep(10 * Every)
		k.want(t, "a1", "a2")
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 4 || !strings.Contains(lines[0], "refused bad") || !strings.Contains(lines[1], "no such file") ||
			!strings.Contains(lines[2], "longer than 1048576 bytes") || !strings.Contains(lines[3], "taken up") {
			t.Errorf("log:\n%s", out.String())
		}
	})
}

func TestWhatIsWrongAtTheStartIsAnError(t *testing.T) {
	a := filepath.Join(t.TempDir(), "a")
	var k taken
	if _, err := Start([]string{a}, nil, k.load); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is missing: %v", err)
	}
	write(t, a, "bad")
	if _, err := Start([]string{a}, nil, k.load); err == nil || err.Error() != "refused bad" {
		t.Errorf("a file that is refused: %v", err)
	}
}
