package main

import (
	"strings"
	"testing"

	"github.com/faas-predict/faas-predict/watchdog/server"
)

// What could serve anything, or show a credential to whoever lists processes, is refused before anybody is asked.
func TestFetchSaysWhatItTakes(t *testing.T) {
	digest := strings.Repeat("0", 64)
	whole := []string{"-version", "1_1", "-code-digest", digest, "-coefficients-digest", digest}
	with := func(more ...string) []string { return append(append([]string{}, whole...), more...) }
	for _, c := range []struct {
		says string
		args []string
	}{
		{"fetch takes a URL and a directory", with()},
		{"fetch takes a URL and a directory", with("http://provider/bundle")},
		{"fetch takes a URL and a directory", with("http://provider/bundle", "dir", "more")},
		{"without them anything could be served", []string{"http://provider/bundle", t.TempDir()}},
		{"without them anything could be served", append(whole[:4:4], "http://provider/bundle", t.TempDir())},
		{"without them anything could be served", []string{"-version", "1_1", "-code-digest", "x", "-coefficients-digest", digest, "http://provider/bundle", t.TempDir()}},
		{"a -max-bytes of 1 or more", with("-max-bytes", "0", "http://provider/bundle", t.TempDir())},
		{"flag provided but not defined: -password", with("-password", "s3cret", "http://provider/bundle", t.TempDir())},
		{"a credential belongs in a file", with("http://admin:s3cret@provider/bundle", t.TempDir()+"/iris")},
		{"is no URL of a bundle", with("ftp://provider/bundle", t.TempDir()+"/iris")},
	} {
		if err := fetchBundle(server.Settings{}, c.args); err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v gives %v, want %q", c.args, err, c.says)
		}
	}
}
