package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/openfaas/faas-provider/types"
)

// As docs/operations.md says: stopped, with tar, without what is made anew; and unpacked to the same path.
func TestBackupBringsEverythingBack(t *testing.T) {
	p := startProvider(t)
	p.model("echo", talkativeModel)
	if _, err := p.CreateSecret(t.Context(), types.Secret{Name: "key", Value: "kept"}); err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"com.openfaas.scale.min": "2"}
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo", Secrets: []string{"key"}, Labels: &labels})
	p.model("guarded", talkativeModel)
	p.deployWith("guarded", tokenFor, nil)
	token := p.accessToken("shop", p.register("shop", "--functions", "*"))
	p.wantStatus(http.StatusOK, "guarded", token)

	p.stop()
	archive := filepath.Join(t.TempDir(), "backup.tar.gz")
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	run("tar", "-C", p.dir, "-czf", archive, "--exclude=data/run", "--exclude=data/envs", "data")
	if err := os.RemoveAll(p.data()); err != nil {
		t.Fatal(err)
	}
	run("tar", "-C", p.dir, "-xzf", archive)
	p.start()
	p.eventually("the functions are back", func() bool {
		wanted, ready := p.replicas("echo")
		status, _ := p.callBearing("guarded", token)
		return wanted == 2 && ready == 2 && status == http.StatusOK
	})
	p.wantCall("echo", "secret key", "kept")
	p.wantStatus(http.StatusUnauthorized, "guarded", "")
}
