package conformance

import "testing"

func TestPython3RunnerConforms(t *testing.T) {
	Run(t, Runner{Interpreter: "python3", Models: "testdata/python3", Traceback: "Traceback (most recent call last)"})
}
