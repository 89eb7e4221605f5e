package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// crashVariable makes this program one that stores for ever, for the test that kills it.
const crashVariable = "STORE_CRASH_TEST"

func TestMain(m *testing.M) {
	if dirs := os.Getenv(crashVariable); dirs != "" {
		dir, from, _ := strings.Cut(dirs, ":")
		fmt.Fprintln(os.Stderr, storeForEver(dir, from))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func storeForEver(dir, from string) error {
	s, err := open(dir)
	if err != nil {
		return err
	}
	fmt.Println("open")
	for {
		entries, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if _, err := s.put(context.Background(), &inTurn{}, []string{filepath.Join(from, entry.Name())}); err != nil {
				return err
			}
			fmt.Println(entry.Name())
		}
	}
}

// inTurn chooses each codec in turn, so that every one is stored with.
type inTurn struct{ n int }

func (c *inTurn) choose(_ context.Context, blocks []features) ([]string, error) {
	names := make([]string, len(blocks))
	for i := range names {
		names[i] = codecs[c.n%len(codecs)].name
		c.n++
	}
	return names, nil
}

// samples are blocks of every kind.
func samples() map[string][]byte {
	noise := make([]byte, blockSize)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	return map[string][]byte{
		"nothing": {}, "a byte": {7}, "noise": noise, "zeros": make([]byte, 100<<10),
		"text": bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog\n"), 2000),
		"far":  append(append(bytes.Clone(noise[:8<<10]), make([]byte, 40<<10)...), noise[:8<<10]...),
	}
}

func TestEveryCodecGivesBackWhatItWasGiven(t *testing.T) {
	for _, c := range codecs {
		for name, raw := range samples() {
			packed, err := c.compress(raw)
			if err != nil {
				t.Fatalf("%s: %s: %v", c.name, name, err)
			}
			back, err := c.decompress(packed, len(raw))
			if err != nil || !bytes.Equal(back, raw) {
				t.Errorf("%s: %s: %d bytes came back as %d: %v", c.name, name, len(raw), len(back), err)
			}
		}
	}
}

func FuzzEveryCodecGivesBackWhatItWasGiven(f *testing.F) {
	for _, raw := range samples() {
		f.Add(raw[:min(len(raw), 4096)])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		raw = raw[:min(len(raw), blockSize)]
		for _, c := range codecs {
			packed, err := c.compress(raw)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := c.decompress(packed, len(raw)); err != nil || !bytes.Equal(back, raw) {
				t.Errorf("%s: %v", c.name, err)
			}
			// What is damaged is an error or other bytes, and no panic.
			for i := range packed {
				packed[i] ^= 0x55
				if i > 64 {
					break
				}
			}
			_, _ = c.decompress(packed, len(raw))
		}
	})
}

func TestFeaturesSayWhatTheyMean(t *testing.T) {
	blocks := samples()
	noise, zeros, text := describe(blocks["noise"]), describe(blocks["zeros"]), describe(blocks["text"])
	entropy, repeats := 1, 7
	if noise[entropy] < 7.99 || noise[repeats] > 0.05 {
		t.Errorf("noise: %v", noise)
	}
	if zeros[entropy] != 0 || zeros[2] != 1 || zeros[5] < 0.99 || zeros[repeats] < 0.99 {
		t.Errorf("zeros: %v", zeros)
	}
	if math.Abs(text[3]-1) > 1e-9 || text[4] != 0 || text[repeats] < 0.99 {
		t.Errorf("text: %v", text)
	}
	if far := describe(blocks["far"])[8]; far < 0.05 {
		t.Errorf("repeats beyond 32 KiB: %v", far)
	}
	for name, block := range blocks {
		f := describe(block)
		if fields := strings.Split(f.String(), ","); len(fields) != len(featureNames) {
			t.Errorf("%s: %s", name, f)
		}
		for i, v := range f {
			if limit := []float64{blockSize, 8, 1, 1, 1, 1, 1, 1, 1}[i]; math.IsNaN(v) || v < 0 || v > limit+1e-9 {
				t.Errorf("%s: %s is %v", name, featureNames[i], v)
			}
		}
	}
}

// tree writes files of every size that matters and returns their directory and contents.
func tree(t *testing.T) (dir string, want map[string][]byte) {
	t.Helper()
	dir, want = t.TempDir(), map[string][]byte{}
	noise := rand.NewChaCha8([32]byte{2})
	for i, size := range []int{0, 1, 511, 512, 513, blockSize - 1, blockSize, blockSize + 1, 3*blockSize + 17} {
		raw := make([]byte, size)
		_, _ = noise.Read(raw[:size/2])
		path := filepath.Join(dir, fmt.Sprintf("d%d", i%3), fmt.Sprintf("a file of %d", size))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o640); err != nil {
			t.Fatal(err)
		}
		want[path] = raw
	}
	return dir, want
}

func mustOpen(t *testing.T, dir string) *store {
	t.Helper()
	s, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func TestFilesComeBackByteForByte(t *testing.T) {
	from, want := tree(t)
	dir, to := t.TempDir(), filepath.Join(t.TempDir(), "to")
	s := mustOpen(t, dir)
	if _, err := s.put(t.Context(), &inTurn{}, []string{from}); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir)
	files, size, err := s.verify(t.Context())
	total := int64(0)
	for _, raw := range want {
		total += int64(len(raw))
	}
	if err != nil || files != len(want) || size != total {
		t.Errorf("verified %d files of %d bytes: %v", files, size, err)
	}
	if err := s.restore(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	for path, raw := range want {
		back := filepath.Join(to, path)
		got, err := os.ReadFile(back)
		if err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: %d bytes came back as %d: %v", path, len(raw), len(got), err)
			continue
		}
		before, _ := os.Stat(path)
		after, _ := os.Stat(back)
		if before.Mode() != after.Mode() || !before.ModTime().Equal(after.ModTime()) {
			t.Errorf("%s: mode %v and time %v", path, after.Mode(), after.ModTime())
		}
	}
	if err := s.restore(t.Context(), to); err == nil {
		t.Error("it restored over files that were there")
	}
}

func TestAFlippedBitIsFoundAndNamed(t *testing.T) {
	from, want := tree(t)
	dir := t.TempDir()
	s := mustOpen(t, dir)
	if _, err := s.put(t.Context(), &inTurn{}, []string{from}); err != nil {
		t.Fatal(err)
	}
	var damaged string
	var at int64
	s.each(t.Context(), func(name string, f file) error {
		if len(f.Blocks) > 1 {
			damaged, at = name, f.Blocks[1].At+int64(f.Blocks[1].Bytes)/2
		}
		return nil
	})
	b := make([]byte, 1)
	s.data.ReadAt(b, at)
	b[0] ^= 4
	s.data.WriteAt(b, at)
	files, _, err := s.verify(t.Context())
	if err == nil || !strings.Contains(err.Error(), damaged) || files != len(want)-1 {
		t.Errorf("%d files are as they were: %v", files, err)
	}
}

func TestTwoStoresDoNotShareADirectory(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, dir)
	if _, err := open(dir); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
}

// broken never answers.
type broken struct{}

func (broken) choose(context.Context, []features) ([]string, error) { return nil, errors.New("down") }

func TestFilesAreStoredWhileTheModelIsDown(t *testing.T) {
	from, want := tree(t)
	s := mustOpen(t, t.TempDir())
	sum, err := s.put(t.Context(), broken{}, []string{from})
	if err != nil || sum.files != len(want) || sum.unasked != sum.blocks {
		t.Errorf("%v %v", sum, err)
	}
	if files, _, err := s.verify(t.Context()); err != nil || files != len(want) {
		t.Errorf("%d files, %v", files, err)
	}
}

func TestAnswersThatAreNoCodecsAreRefused(t *testing.T) {
	for body, want := range map[string]string{
		"\"none\"\n":                             "1 answers to 2 rows",
		"\"none\"\n\"lzma\"\n":                   `row 2: "lzma" is not a codec`,
		"\"none\"\n{\"error\":{\"status\":500}}": `row 2: {"error"`,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }))
		c, err := (&asking{gateway: server.URL, function: "compression"}).chooser()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.choose(t.Context(), make([]features, 2)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", body, err, want)
		}
		server.Close()
	}
}

// A store that is killed has every file that it said it had stored, and no part of any other.
func TestAKilledStoreHasEachFileWholeOrNotAtAll(t *testing.T) {
	from := t.TempDir()
	contents := map[string][]byte{}
	for i := range 20 {
		raw := bytes.Repeat(fmt.Appendf(nil, "file %d ", i), 20_000)
		contents[fmt.Sprint(i)] = raw
		if err := os.WriteFile(filepath.Join(from, fmt.Sprint(i)), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]bool{}
	for kill := range 5 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), crashVariable+"="+dir+":"+from)
		var out, failed bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &failed
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(150+37*kill) * time.Millisecond) // the kill is to come at any point
		cmd.Process.Kill()
		cmd.Wait()
		if failed.Len() > 0 {
			t.Fatalf("it failed by itself: %s", &failed)
		}
		for _, line := range strings.SplitAfter(out.String(), "\n") {
			if name, whole := strings.CutSuffix(line, "\n"); whole && name != "open" {
				said[name] = true
			}
		}
		s, err := open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.verify(t.Context()); err != nil {
			t.Errorf("kill %d: %v", kill, err)
		}
		lost := len(said)
		s.each(t.Context(), func(name string, f file) error {
			if said[filepath.Base(name)] {
				lost--
			}
			if f.Size != int64(len(contents[filepath.Base(name)])) {
				t.Errorf("%s has %d bytes", name, f.Size)
			}
			return nil
		})
		if lost != 0 {
			t.Errorf("kill %d: %d of %d stored files were lost", kill, lost, len(said))
		}
		if info, err := os.Stat(filepath.Join(dir, "data")); err != nil || info.Size() != s.end {
			t.Errorf("data has %v bytes, the index names %d", info, s.end)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(said) == 0 {
		t.Error("nothing was stored before any kill")
	}
}

func TestMeasuredBlocksAreJudged(t *testing.T) {
	from, _ := tree(t)
	var out, progress, table bytes.Buffer
	if err := measure(t.Context(), &out, &progress, []string{from}, 300<<10, 1); err != nil {
		t.Fatal(err)
	}
	// Directories of tests are few: put all of them into a fold that is judged.
	records, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(records) < 2 {
		t.Fatalf("%d rows: %v", len(records), err)
	}
	for _, r := range records[1:] {
		r[1] = "9"
	}
	path := filepath.Join(t.TempDir(), "m.csv")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := csv.NewWriter(file).WriteAll(records); err != nil {
		t.Fatal(err)
	}
	file.Close()
	if err := judge(t.Context(), &table, always("zstd-best"), path); err != nil {
		t.Fatal(err)
	}
	cost := func(policy string) (cost float64) {
		for line := range strings.Lines(table.String()) {
			if cells := strings.Split(line, "|"); len(cells) > 5 && strings.TrimSpace(cells[1]) == policy {
				fmt.Sscan(cells[5], &cost)
			}
		}
		return cost
	}
	if cost("oracle") <= 0 || cost("oracle") > cost("always xz") || cost("always none") < cost("always zstd-best") {
		t.Errorf("%s", &table)
	}
	// The model that always says zstd-best costs what zstd-best does, and the asking.
	if cost("the model") < cost("always zstd-best") {
		t.Errorf("the asking was not charged:\n%s", &table)
	}
}

func TestWhatIsNoFileIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, t.TempDir())
	if sum, err := s.put(t.Context(), always("none"), []string{dir}); err != nil || sum.files != 0 {
		t.Errorf("%v %v", sum, err)
	}
	if _, err := s.put(t.Context(), always("none"), []string{filepath.Join(dir, "gone")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
