package process

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/watchdog/packages"
)

func TestRModelsAreToldInOneSentenceWhatIsMissing(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "Rscript")
	for _, c := range []struct{ name, interpreter, packages, says string }{
		{"nothing", "", "", ""},
		{"only comments", "", "# none\n\n", ""},
		{"what comes with R", "", "stats # and\nutils\n", ""},
		{"R", nowhere, "", nowhere + ", which models in R run on, is not installed: install r-base-core or set rscript"},
		{"a package", "", "stats\nnoSuch.Package\n", "packages.txt names noSuch.Package, which is not installed: install r-cran-nosuch.package, or from CRAN what Debian does not have"},
		{"two packages", "", "noSuchOne\nnoSuchTwo\n", "packages.txt names noSuchOne, noSuchTwo, which are not installed: install r-cran-nosuchone r-cran-nosuchtwo, or from CRAN what Debian does not have"},
		{"what is no name", "", "stats\n--vanilla\n", `packages.txt line 2: "--vanilla" is not the name of a package: one name a line`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, packages.RFile), []byte(c.packages), 0o644))
			interpreter, err := rscript{wanted: c.interpreter}.prepare(t.Context(), dir)
			if c.says == "" {
				if err != nil || interpreter == "" {
					t.Errorf("got %q, %v", interpreter, err)
				}
				return
			}
			if !errors.Is(err, backend.ErrFailed) || !strings.HasSuffix(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
		})
	}
}
