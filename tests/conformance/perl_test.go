package conformance

import "testing"

func TestPerlRunnerConforms(t *testing.T) {
	Run(t, Runner{Interpreter: "perl", Program: "testdata/perl/runner.pl", Entry: "main.pl", Models: "testdata/perl", Traceback: "died: "})
}
