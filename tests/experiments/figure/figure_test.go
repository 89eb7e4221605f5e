package figure

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRowsComeBackAsTheyWerePut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.csv")
	first := []Row{
		{Line: "b", X: 0.1, Offered: 1e4, Window: 1, N: 100, Relative: 0.001, Mean: 9000.5, S: 95, SPoisson: 94.87, Low: 8999, High: 9001, Theory: 9000, Inside: true},
		{Line: "a", X: 10, N: 1, Remark: `with "quotes", and a comma`},
	}
	if err := Put(path, first); err != nil {
		t.Fatal(err)
	}
	// Another measurement of a point takes its place, and a new one comes in order.
	again := Row{Line: "b", X: 0.1, N: 200}
	if err := Put(path, []Row{again, {Line: "a", X: 2}}); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Row{{Line: "a", X: 2}, first[1], again}, got); diff != "" {
		t.Error(diff)
	}
}

func TestAFileThatIsNotThereHasNoRows(t *testing.T) {
	if rows, err := Read(filepath.Join(t.TempDir(), "none.csv")); err != nil || rows != nil {
		t.Errorf("%v %v", rows, err)
	}
}

func TestBrokenFilesAreNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.csv")
	if err := Put(path, []Row{{Line: "a"}}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(raw, []byte("false"), []byte("maybe"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil {
		t.Error("maybe was read as a boolean")
	}
}

func TestAFigureIsAnSVGWithItsWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.svg")
	err := Plot{
		Title: "A title", X: Axis{Label: "T, s", Log: true}, Y: Axis{Label: "requests/s", Log: true},
		Curves: []Curve{{Name: "theory", Points: [][2]float64{{0.1, 10}, {1, 5}, {10, 1}}}},
		Points: []Points{{Name: "measured", Rows: []Row{{X: 1, Mean: 5, Low: 4, High: 6}}, Hollow: true}, {Name: "nothing"}},
	}.Draw(path)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	decoder := xml.NewDecoder(bytes.NewReader(raw))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, word := range []string{"A title", "T, s", "requests/s", "theory", "measured"} {
		if !bytes.Contains(raw, []byte(word)) {
			t.Errorf("the figure does not say %q", word)
		}
	}
}
