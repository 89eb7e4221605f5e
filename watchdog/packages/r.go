package packages

import (
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

// RFile lists a bundle's R packages: a name a line, # begins a comment.
const RFile = "packages.txt"

// rName is what CRAN allows.
var rName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9.]*[A-Za-z0-9]$`)

// R is the list of the bundle in dir.
func R(dir string) (names []string, err error) {
	text, err := os.ReadFile(filepath.Join(dir, RFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", RFile, err)
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if !rName.MatchString(line) {
			return nil, fmt.Errorf("%s line %d: %.60q is not the name of a package: one name a line", RFile, number, line)
		}
		names = append(names, line)
	}
	return names, nil
}

// MissingR asks R itself, the program rscript run as credential says, which of the packages it does not have.
func MissingR(ctx context.Context, rscript string, names, variables []string, credential *syscall.Credential) ([]string, error) {
	const question = `for (name in commandArgs(TRUE)) if (!nzchar(system.file(package = name))) cat("missing", name, "\n")`
	cmd := exec.CommandContext(ctx, rscript, append([]string{"-e", question}, names...)...)
	cmd.Dir = "/"
	cmd.Env = append(append([]string{}, variables...), "HOME=/nonexistent")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its packages: %w", rscript, err)
	}
	var missing []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "missing" {
			missing = append(missing, fields[1])
		}
	}
	return missing, nil
}

// LackingR is the sentence about R packages that are not there.
func LackingR(names []string) string {
	debian := make([]string, len(names))
	for i, name := range names {
		debian[i] = "r-cran-" + strings.ToLower(name)
	}
	verb := "which is not installed"
	if len(names) > 1 {
		verb = "which are not installed"
	}
	return fmt.Sprintf("%s names %s, %s: install %s, or from CRAN what Debian does not have",
		RFile, strings.Join(names, ", "), verb, strings.Join(debian, " "))
}
