package e2e

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openfaas/faas-provider/types"
)

func TestProviderServesModelsInR(t *testing.T) {
	p := startProvider(t)
	ozone, err := filepath.Abs("../../examples/ozone")
	if err != nil {
		t.Fatal(err)
	}
	p.push("ozone", ozone)
	p.deploy(types.FunctionDeployment{Service: "ozone", Image: "ozone"})
	p.wantCall("ozone", "190,7.4,67", "25.7")

	const predict = "predict <- function(request) request\n"
	p.push("lacking", bundle(t, map[string]string{"main.R": predict, "packages.txt": "stats\nno.such.package\n"}))
	status, err := p.Deploy(t.Context(), types.FunctionDeployment{Service: "lacking", Image: "lacking"})
	if status != http.StatusUnprocessableEntity || !strings.Contains(err.Error(), "packages.txt names no.such.package, which is not installed: install r-cran-no.such.package") {
		t.Errorf("got %d %v", status, err)
	}

	p.push("failing", bundle(t, map[string]string{"main.R": "init <- function() stop('no petals')\n" + predict}))
	status, err = p.Deploy(t.Context(), types.FunctionDeployment{Service: "failing", Image: "failing"})
	if status != http.StatusUnprocessableEntity || !strings.Contains(err.Error(), "Error in init() : no petals") {
		t.Errorf("got %d %v", status, err)
	}
}

func TestProviderWithoutRSaysSo(t *testing.T) {
	p := startProvider(t, "rscript=/no/such/Rscript")
	p.push("echo", bundle(t, map[string]string{"main.R": "predict <- function(request) request\n"}))
	status, err := p.Deploy(t.Context(), types.FunctionDeployment{Service: "echo", Image: "echo"})
	if status != http.StatusUnprocessableEntity || !strings.Contains(err.Error(), "/no/such/Rscript, which models in R run on, is not installed: install r-base-core or set rscript") {
		t.Errorf("got %d %v", status, err)
	}
}
