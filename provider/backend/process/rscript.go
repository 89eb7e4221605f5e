package process

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

	"github.com/faas-predict/faas-predict/provider/backend"
)

// fallbackRscript is where Linux distributions put the one that everybody may run.
const fallbackRscript = "/usr/bin/Rscript"

const packagesFile = "packages.txt"

// rscript is what models in R run on. R's packages are the system's: Debian brings them compiled, and
// compiling what CRAN has would need compilers and libraries that this backend does not choose. So
// nothing is installed here, and a deployment says what is missing. It is looked for at each one, since
// installing R should not need a new start of the provider.
type rscript struct {
	wanted string // a path, a name on PATH, or "" for Rscript
	id     identity
}

// prepare returns the interpreter for the bundle, or says in one sentence what it lacks.
func (r rscript) prepare(ctx context.Context, bundle string) (string, error) {
	interpreter, err := r.find()
	if err != nil {
		return "", fmt.Errorf("%w: %w", backend.ErrFailed, err)
	}
	packages, err := packagesOf(bundle)
	if err != nil || len(packages) == 0 {
		return interpreter, err
	}
	missing, err := r.missing(ctx, interpreter, packages)
	if err != nil {
		return "", err
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("%w: %s", backend.ErrFailed, lacking(missing))
	}
	return interpreter, nil
}

func (r rscript) find() (string, error) {
	name := r.wanted
	if name == "" {
		name = "Rscript"
	}
	path, err := exec.LookPath(name)
	if err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			err = r.id.canRun(path)
		}
	}
	switch {
	case err == nil:
		return path, nil
	case r.wanted == "" && r.id.canRun(fallbackRscript) == nil:
		return fallbackRscript, nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s, which models in R run on, is not installed: install r-base-core or set rscript", name)
	}
	return "", fmt.Errorf("%s cannot run models, which have users of their own: %w; install r-base-core for all users or set rscript", name, err)
}

// packageName is what CRAN allows.
var packageName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9.]*[A-Za-z0-9]$`)

// packagesOf reads a bundle's packages.txt: a name a line, # begins a comment.
func packagesOf(bundle string) (names []string, err error) {
	text, err := os.ReadFile(filepath.Join(bundle, packagesFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", packagesFile, err)
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if !packageName.MatchString(line) {
			return nil, fmt.Errorf("%w: %s line %d: %.60q is not the name of a package: one name a line", backend.ErrFailed, packagesFile, number, line)
		}
		names = append(names, line)
	}
	return names, nil
}

// missing asks R itself, as the user that builds, which of the packages it does not have.
func (r rscript) missing(ctx context.Context, interpreter string, packages []string) ([]string, error) {
	const question = `for (name in commandArgs(TRUE)) if (!nzchar(system.file(package = name))) cat("missing", name, "\n")`
	cmd := exec.CommandContext(ctx, interpreter, append([]string{"-e", question}, packages...)...)
	cmd.Dir = "/"
	cmd.Env = append(basicEnvironment(), "HOME=/nonexistent")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.id.credential()}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: ask %s for its packages: %w", backend.ErrFailed, interpreter, err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "missing" {
			names = append(names, fields[1])
		}
	}
	return names, nil
}

// lacking is the sentence about packages that are not there.
func lacking(names []string) string {
	debian := make([]string, len(names))
	for i, name := range names {
		debian[i] = "r-cran-" + strings.ToLower(name)
	}
	verb := "which is not installed"
	if len(names) > 1 {
		verb = "which are not installed"
	}
	return fmt.Sprintf("%s names %s, %s: install %s, or from CRAN what Debian does not have",
		packagesFile, strings.Join(names, ", "), verb, strings.Join(debian, " "))
}
