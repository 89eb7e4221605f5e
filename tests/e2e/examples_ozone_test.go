package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// One model in two languages, which must answer alike.
func TestTheOzoneModelAnswersAlikeInRAndPython(t *testing.T) {
	t.Parallel()
	const inR, inPython = "../../examples/ozone", "../../examples/ozone-python"
	var coefficients [2][]byte
	var models [2]*watchdog
	for n, dir := range []string{inR, inPython} {
		dir, err := filepath.Abs(dir)
		if err != nil {
			t.Fatal(err)
		}
		if coefficients[n], err = os.ReadFile(filepath.Join(dir, "coefficients", "ozone.csv")); err != nil {
			t.Fatal(err)
		}
		models[n] = start(t, dir, "interpreter="+[]string{"Rscript", built.interpreter}[n], "workers=1")
	}
	if !bytes.Equal(coefficients[0], coefficients[1]) {
		t.Error("the coefficients are not the same file")
	}
	var rows strings.Builder
	count := 0
	for solar := 7; solar <= 334; solar += 29 { // the range of the data
		for wind := 23; wind <= 207; wind += 13 {
			for temperature := 57; temperature <= 97; temperature += 3 {
				fmt.Fprintf(&rows, "\"%d,%d.%d,%d\"\n", solar, wind/10, wind%10, temperature)
				count++
			}
		}
	}
	var streams [2][]string
	for n, w := range models {
		streams[n] = w.streamed(w.post(rows.String(), "Content-Type: application/x-ndjson"))
	}
	asked := strings.Split(rows.String(), "\n")
	for n := range count {
		if streams[0][n] != streams[1][n] || strings.Contains(streams[0][n], "error") {
			t.Fatalf("%s: R answers %s, Python %s", asked[n], streams[0][n], streams[1][n])
		}
	}
	for _, request := range []string{"190,7.4,67", "190,7.4", "190,calm,67", "190,7.4,", ""} {
		answers := [2]answer{models[0].post(request), models[1].post(request)}
		if answers[0].status != answers[1].status {
			t.Errorf("%q: %s and %s", request, answers[0], answers[1])
		}
		if answers[0].status == http.StatusOK {
			models[1].wantBody(answers[0].body, answers[1])
			continue
		}
		_, r, _ := strings.Cut(answers[0].problem(t).Detail, "simpleError: ")
		_, python, _ := strings.Cut(answers[1].problem(t).Detail, "ValueError: ")
		if r != python {
			t.Errorf("%q: R says %q, Python %q", request, r, python)
		}
	}
}
