package conformance

import "testing"

func TestRRunnerConforms(t *testing.T) {
	Run(t, Runner{Interpreter: "Rscript", Models: "testdata/r", Traceback: "Traceback (innermost first)"})
}
