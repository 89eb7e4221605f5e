package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/openfaas/faas-provider/types"
)

// ask is a request to a route of a provider. It returns 0 and the error for one without an answer.
func (i *installed) ask(ctx context.Context, method, url string, body any) (int, string) {
	text, isText := body.(string)
	raw := []byte(text)
	if !isText {
		raw, _ = json.Marshal(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(raw))
	if err != nil {
		return 0, err.Error()
	}
	r.SetBasicAuth("admin", i.password)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	out, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(out)
}

func (i *installed) deploy(t *testing.T, spec types.FunctionDeployment) {
	t.Helper()
	if status, said := i.ask(t.Context(), "POST", i.provider(0)+"/system/functions", spec); status != http.StatusAccepted {
		pods, _ := i.Run(t.Context(), "kubectl", "-n", namespace, "describe", "pods,deployments")
		t.Fatalf("deploy: %d %s\n%s", status, said, pods)
	}
}

func (i *installed) remove(t *testing.T, name string) {
	t.Helper()
	status, said := i.ask(t.Context(), "DELETE", i.provider(0)+"/system/functions", types.DeleteFunctionRequest{FunctionName: name})
	if status != http.StatusAccepted {
		t.Errorf("delete: %d %s", status, said)
	}
	i.nothingIsLeft(t)
}

func (i *installed) nothingIsLeft(t *testing.T) {
	t.Helper()
	must(t, wait(t.Context(), func() error {
		if left := i.Left(t); len(left) > 0 {
			return fmt.Errorf("left behind: %v", left)
		}
		return nil
	}))
}

func version(repository, code, coefficients, main string) fstest.MapFS {
	return fstest.MapFS{
		"model.yml": {Data: fmt.Appendf(nil, "name: %s\ncode_version: %q\ncoefficients_version: %q\n", repository, code, coefficients)},
		"main.py":   {Data: []byte(main)},
	}
}

// telling is a model that says what its container may do.
const telling = `
import os

def write(path):
    try:
        with open(path, "w") as f:
            f.write("x")
        return "written"
    except OSError as e:
        return type(e).__name__ + " " + str(e.errno)

def predict(request):
    with open("/proc/self/status") as f:
        status = dict(line.rstrip().split(":", 1) for line in f)
    return "\n".join([
        "user %d group %d" % (os.getuid(), os.getgid()), "capabilities " + status["CapEff"].strip() + " " + status["CapBnd"].strip(),
        "no new privileges " + status["NoNewPrivs"].strip(), "seccomp " + status["Seccomp"].strip(),
        "/tmp " + write("/tmp/x"), "code " + write("x"), "working directory " + os.getcwd(),
        "credential " + str(os.path.exists("/etc/faas-predict")), "token " + str(os.path.exists("/var/run/secrets/kubernetes.io")),
    ])
`

// toldOf is what it says of a container without privileges whose bundle is in dir.
func toldOf(dir string) string {
	none := strings.Repeat("0", 16)
	return fmt.Sprintf("user %d group 0\ncapabilities %s %s\nno new privileges 1\nseccomp 2\n/tmp written\ncode OSError 30\n"+
		"working directory %s\ncredential False\ntoken False", user, none, none, dir)
}

// A function runs as a user id that no image knows, and writes to /tmp and nowhere else; what breaks Pod Security
// "restricted" does not get into its namespace.
func TestAFunctionHasNoPrivileges(t *testing.T) {
	image := shared.push(t, "privileges", version("privileges", "1", "1", telling))
	shared.deploy(t, types.FunctionDeployment{Service: "privileges", Image: image})
	want := toldOf("/home/app/function")
	if status, said := shared.ask(t.Context(), "POST", shared.service()+"/function/privileges", "x"); status != 200 || said != want {
		t.Errorf("got %d\n%s\nwant\n%s", status, said, want)
	}
	out, err := shared.Run(t.Context(), "kubectl", "-n", namespace, "run", "root", "--image", image, "--restart", "Never")
	if err == nil || !strings.Contains(out, `violates PodSecurity "restricted:latest"`) {
		t.Errorf("a pod that breaks the rules: %v %s", err, out)
	}
	shared.remove(t, "privileges")
}

// The provider has the rights that it uses, and none that would give it more.
func TestTheProviderHasNoWiderRights(t *testing.T) {
	can := func(arguments ...string) bool {
		t.Helper()
		out, err := shared.Run(t.Context(), "kubectl", append([]string{
			"auth", "can-i", "--quiet=false", "--as", "system:serviceaccount:" + system + ":faas-predict",
		}, arguments...)...)
		if err != nil && !strings.HasPrefix(out, "no") && !strings.Contains(out, "\nno") {
			t.Fatal(err)
		}
		return err == nil
	}
	if !can("create", "deployments", "-n", namespace) {
		t.Error("it may not create deployments where functions are")
	}
	for _, refused := range [][]string{
		{"create", "deployments", "-n", "default"}, {"get", "secrets", "-n", system}, {"get", "secrets", "-n", "kube-system"},
		{"create", "pods", "-n", namespace}, {"create", "pods/exec", "-n", namespace}, {"create", "serviceaccounts/token", "-n", namespace},
		{"create", "rolebindings", "-n", namespace}, {"list", "configmaps", "-A"}, {"list", "nodes"}, {"create", "namespaces"},
	} {
		if can(refused...) {
			t.Errorf("it may %v", refused)
		}
	}
}

// Whoever removes a function's record removes the function.
func TestARecordOwnsWhatRuns(t *testing.T) {
	image := shared.push(t, "owned", version("owned", "1", "1", "def predict(request): return request\n"))
	shared.deploy(t, types.FunctionDeployment{Service: "owned", Image: image})
	out, err := shared.Run(t.Context(), "kubectl", "-n", namespace, "delete", "configmap", "faas-predict-owned")
	if err != nil {
		t.Fatal(err, out)
	}
	shared.nothingIsLeft(t)
	for n := range shared.providers {
		must(t, wait(t.Context(), func() error {
			if status, said := shared.ask(t.Context(), "POST", shared.provider(n)+"/function/owned", "x"); status != http.StatusNotFound {
				return fmt.Errorf("a call: %d %s, want 404", status, said)
			}
			return nil
		}))
	}
}
