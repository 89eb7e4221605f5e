package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/watchdog/packages"
)

// fallbackRscript is where Linux distributions put the one that everybody may run.
const fallbackRscript = "/usr/bin/Rscript"

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
	names, err := packages.R(bundle)
	if err == nil && len(names) > 0 {
		names, err = packages.MissingR(ctx, interpreter, names, basicEnvironment(), r.id.credential())
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", backend.ErrFailed, err)
	}
	if len(names) > 0 {
		return "", fmt.Errorf("%w: %s", backend.ErrFailed, packages.LackingR(names))
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
