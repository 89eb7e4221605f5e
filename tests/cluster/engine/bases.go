package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// Base is an image that the templates' Dockerfiles can start from: Debian with a language.
type Base struct {
	Name     string // in the engine
	argument string // the build argument that names it
	packages string
}

// The bases of the two templates.
var (
	Python = Base{"local/python3:bookworm", "PYTHON_IMAGE", "python3,python3-venv,ca-certificates"}
	R      = Base{"local/r-base:bookworm", "R_IMAGE", "r-base-core,ca-certificates"}
)

// Argument is the build argument that gives the base to its template.
func (b Base) Argument() string { return b.argument + "=" + b.Name }

// Archive returns the base's root file system as a tar in cache, which is made the first time: that takes half a
// minute to a minute. Tests that run at once make one.
func (b Base) Archive(ctx context.Context, cache string) (string, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	file := filepath.Join(cache, strings.NewReplacer("/", "-", ":", "-").Replace(b.Name)+".tar")
	lock, err := os.Create(file + ".lock")
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("wait for %s: %w", file, err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	root := file + ".root"
	if err := errors.Join(os.RemoveAll(root), os.Mkdir(root, 0o755)); err != nil { // of a test that was killed
		return "", err
	}
	defer os.RemoveAll(root)
	mirror, err := debianMirror()
	if err != nil {
		return "", err
	}
	script := `set -eu
PATH=$PATH:/usr/sbin:/sbin
debootstrap --variant=minbase --include="$3" bookworm "$1" "$4" >"$2.log" 2>&1 || { tail -20 "$2.log"; exit 1; }
rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*
tar -C "$1" --exclude=./usr/share/doc --exclude=./usr/share/locale --exclude=./usr/share/man -cf "$2.part" .
mv "$2.part" "$2"; rm "$2.log"`
	cmd := exec.CommandContext(ctx, "sh", "-c", script, "bootstrap", root, file, b.packages, mirror)
	// What debootstrap mounts ends with it, whatever happens to this program.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make %s with debootstrap: %w: %s", b.Name, err, out)
	}
	return file, nil
}

var source = regexp.MustCompile(`(?m)^(?:URIs: *|deb +(?:\[[^]]*\] +)?)(\S+/debian)/?(?:\s|$)`)

// debianMirror is where this machine gets its own packages from.
func debianMirror() (string, error) {
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	for _, file := range append([]string{"/etc/apt/sources.list"}, files...) {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if found := source.FindSubmatch(raw); found != nil {
			return string(found[1]), nil
		}
	}
	return "", errors.New("this machine's apt sources name no mirror of Debian")
}

// MakeBase gives the engine the base, with this machine's own settings for pip and its certificate authorities: what
// the machine reaches, a build on it is to reach too.
func (e *Engine) MakeBase(ctx context.Context, b Base, cache string) error {
	file, err := b.Archive(ctx, cache)
	if err != nil {
		return err
	}
	archive, err := os.Open(file)
	if err != nil {
		return err
	}
	defer archive.Close()
	bare := b.Name + "-bare"
	if err := e.imports(ctx, archive, bare); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "base-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	authorities, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"pip.conf":            pipConfiguration(ctx),
		"ca-certificates.crt": authorities,
		"Dockerfile": []byte("FROM " + bare + "\nCOPY pip.conf /etc/pip.conf\n" +
			"COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt\nENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	_, err = e.Docker(ctx, "build", "--quiet", "--tag", b.Name, dir)
	return err
}

// pipConfiguration is what this machine's pip is told about indexes, by files and by variables.
func pipConfiguration(ctx context.Context) []byte {
	out := bytes.NewBufferString("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
	listed, err := exec.CommandContext(ctx, "python3", "-m", "pip", "config", "list").Output()
	if err != nil {
		return out.Bytes() // no pip, no settings
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(listed)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		_, key, _ = strings.Cut(strings.TrimPrefix(key, ":env:"), ".")
		if key == "" { // :env:.key
			continue
		}
		switch key {
		case "index-url", "extra-index-url", "trusted-host", "timeout", "default-timeout":
			if !known[key] {
				known[key] = true
				fmt.Fprintf(out, "%s = %s\n", key, strings.Trim(value, "'"))
			}
		}
	}
	return out.Bytes()
}
