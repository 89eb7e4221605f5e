package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

func TestLabelsAreTheBundlesVersion(t *testing.T) {
	const dir = "../examples/iris"
	bundle, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"labels", dir, "--name", "flower"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"org.opencontainers.image.title=flower\n",
		"org.opencontainers.image.version=" + bundle.Version.ID + "\n",
		"faas-predict.code-digest=" + bundle.Version.CodeDigest + "\n",
		"faas-predict.coefficients-digest=" + bundle.Version.CoefficientsDigest + "\n",
		"faas-predict.runtime=python3\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, out.String())
		}
	}
}
