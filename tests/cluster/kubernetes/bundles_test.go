package kubernetes

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/openfaas/faas-provider/types"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/faas-predict/faas-predict/tests/cluster/conformance"
	"github.com/faas-predict/faas-predict/tests/cluster/kube"
	"github.com/faas-predict/faas-predict/tests/cluster/modelimage"
)

// keeping is the cluster with one provider that has a volume: it runs pushed bundles.
type keeping struct {
	*installed
	data    string // the volume, as this machine sees it
	runtime string // the image that bundles run on
}

// keep makes the two providers one with a volume, until the test ends. That is how an administrator would change it.
func keep(t *testing.T) *keeping {
	t.Helper()
	k := &keeping{installed: shared, data: t.TempDir()}
	must(t, os.Chmod(filepath.Dir(k.data), 0o755)) // the provider's user is none that this machine knows
	k.runtime = k.pushRuntime(t)
	must(t, os.Chmod(k.data, 0o755))
	_, err := k.Client.CoreV1().PersistentVolumes().Create(t.Context(), &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "data"},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")},
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				Local: &corev1.LocalVolumeSource{Path: k.data},
			},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{kube.NodeName},
				}},
			}}}},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		k.replicas = 2
		if err := errors.Join(k.upgrade(ctx), k.findProviders(ctx)); err != nil {
			t.Error(err)
		}
		_, err := k.Run(ctx, "kubectl", "-n", system, "delete", "--wait", "pvc/faas-predict", "pv/data")
		if err != nil {
			t.Error(err)
		}
	})
	k.replicas = 1
	must(t, k.upgrade(t.Context(), "persistence.enabled=true", "persistence.fsGroup=12000",
		"runtimeImages.python3="+k.runtime, "settings.provider_url="+k.service(),
		"settings.PIP_INDEX_URL="+k.index(t), "settings.PIP_TRUSTED_HOST="+k.machine()))
	must(t, k.findProviders(t.Context()))
	return k
}

// machine is the address of this machine that the node reaches.
func (k *keeping) machine() string {
	host, _, _ := net.SplitHostPort(k.Registry.Host)
	return host
}

// pushRuntime pushes what watchdog/runtime.Dockerfile makes, less what it builds.
func (k *keeping) pushRuntime(t *testing.T) string {
	t.Helper()
	base, err := python()
	must(t, err)
	program, err := modelimage.Program("/usr/bin/fwatchdog", filepath.Join(root, "bin", "fwatchdog"))
	must(t, err)
	watchdog, err := modelimage.Layer(program)
	must(t, err)
	image, err := mutate.AppendLayers(base, watchdog)
	must(t, err)
	image, err = mutate.Config(image, v1.Config{
		Cmd: []string{"fwatchdog"}, User: "12000:0",
		Env: []string{"PATH=/usr/bin:/bin", "HOME=/home/app", "PYTHONDONTWRITEBYTECODE=1", "port=8080"},
	})
	must(t, err)
	ref, err := modelimage.Push(t.Context(), image, k.Registry, "runtime-python3:test")
	must(t, err)
	return ref
}

// index is the URL of a package index that has "plants" 1.0.
func (k *keeping) index(t *testing.T) string {
	t.Helper()
	const file = "plants-1.0-py3-none-any.whl"
	wheel := zipped(t, map[string]string{
		"plants.py":                     "def name(): return 'a package'\n",
		"plants-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: plants\nVersion: 1.0\n",
		"plants-1.0.dist-info/WHEEL":    "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		"plants-1.0.dist-info/RECORD":   "plants.py,,\nplants-1.0.dist-info/METADATA,,\nplants-1.0.dist-info/WHEEL,,\nplants-1.0.dist-info/RECORD,,\n",
	})
	listener, err := net.Listen("tcp", k.machine()+":0")
	must(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/simple/plants/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "<a href=%q>%s</a>", "/"+file, file)
	})
	mux.HandleFunc("/"+file, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(wheel) })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	return "http://" + listener.Addr().String() + "/simple/"
}

func zipped(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	for name, text := range files {
		entry, err := archive.Create(name)
		must(t, err)
		_, err = entry.Write([]byte(text))
		must(t, err)
	}
	must(t, archive.Close())
	return out.Bytes()
}

// Image implements conformance.Harness: it pushes a zip.
func (k *keeping) Image(t *testing.T, model, _ string, files map[string]string) string {
	t.Helper()
	return model + ":" + k.pushZip(t, model, files)
}

// pushZip returns the version that the files are.
func (k *keeping) pushZip(t *testing.T, model string, files map[string]string) string {
	t.Helper()
	status, said := k.ask(t.Context(), "PUT", k.provider(0)+"/system/models/"+model, string(zipped(t, files)))
	if status != http.StatusCreated && status != http.StatusOK {
		t.Fatalf("push %s: %d %s", model, status, said)
	}
	var v struct{ Version string }
	must(t, json.Unmarshal([]byte(said), &v))
	return v.Version
}

func (k *keeping) change(t *testing.T, spec types.FunctionDeployment) {
	t.Helper()
	if status, said := k.ask(t.Context(), "PUT", k.provider(0)+"/system/functions", spec); status != http.StatusOK {
		t.Fatalf("update to %s: %d %s", spec.Image, status, said)
	}
}

func (k *keeping) call(t *testing.T, function, request, want string) {
	t.Helper()
	if status, said := k.ask(t.Context(), "POST", k.provider(0)+"/function/"+function, request); status != http.StatusOK || said != want {
		t.Errorf("%q is answered %d %s, want %s", request, status, said, want)
	}
}

// pods are a function's that are not asked to end.
func (k *keeping) pods(t *testing.T, function string) (out []corev1.Pod) {
	t.Helper()
	found, err := k.Client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "faas-predict/function=" + function})
	must(t, err)
	for _, p := range found.Items {
		if p.DeletionTimestamp == nil {
			out = append(out, p)
		}
	}
	return out
}

// Pushed bundles are held to all that images are held to, and to what they are for.
func TestPushedBundles(t *testing.T) {
	k := keep(t)
	k.explain(t)
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"NewCoefficientsNeedNoImage", k.newCoefficientsNeedNoImage},
		{"APodHasNoPrivilegesAndNoCredential", k.aPodHasNoPrivilegesAndNoCredential},
		{"PackagesAreInstalled", k.packagesAreInstalled},
		{"WhatIsNotTheVersionDoesNotRun", k.whatIsNotTheVersionDoesNotRun},
		{"AVersionInUseIsNotDeleted", k.aVersionInUseIsNotDeleted},
		{"APodWaitsForItsProvider", k.aPodWaitsForItsProvider},
		{"Conformance", func(t *testing.T) { conformance.Run(t, k) }},
	} {
		t.Run(c.name, c.test)
	}
}

// iris is a bundle whose answer is its coefficients.
func iris(coefficients string) map[string]string {
	return map[string]string{
		"model.yml": "name: iris\ncode_version: \"1\"\ncoefficients_version: " + fmt.Sprintf("%q", coefficients) +
			"\nexamples: [{request: x, response: " + fmt.Sprintf("%q", coefficients) + "}]\n",
		"main.py": "def init():\n    global said\n    with open('coefficients/said') as f:\n        said = f.read()\n" +
			"def predict(request): return said\n",
		"coefficients/said": coefficients,
	}
}

func (k *keeping) newCoefficientsNeedNoImage(t *testing.T) {
	k.pushZip(t, "iris", iris("first"))
	began := time.Now()
	k.deploy(t, types.FunctionDeployment{Service: "iris", Image: "iris"})
	k.call(t, "iris", "x", "first")
	t.Logf("from deploying to the first answer: %s", time.Since(began).Round(time.Millisecond))

	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var mu sync.Mutex
	calls, lost, said := 0, []string{}, map[string]int{}
	for range 6 {
		clients.Go(func() {
			for ctx.Err() == nil {
				status, answer := k.ask(context.WithoutCancel(ctx), "POST", k.provider(0)+"/function/iris", "x")
				mu.Lock()
				calls++
				said[answer]++
				if status != http.StatusOK {
					lost = append(lost, fmt.Sprintf("%d %s", status, answer))
				}
				mu.Unlock()
			}
		})
	}
	for _, coefficients := range []string{"second", "third"} {
		began = time.Now()
		k.pushZip(t, "iris", iris(coefficients))
		k.change(t, types.FunctionDeployment{Service: "iris", Image: "iris"})
		k.call(t, "iris", "x", coefficients)
		t.Logf("from pushing new coefficients to the first answer with them, under load: %s", time.Since(began).Round(time.Millisecond))
	}
	for _, p := range k.pods(t, "iris") {
		if image := p.Spec.Containers[0].Image; image != k.runtime {
			t.Errorf("%s runs %s, not the runtime", p.Name, image)
		}
	}
	if status, answer := k.ask(t.Context(), "POST", k.provider(0)+"/system/models/iris/rollback", ""); status != http.StatusOK {
		t.Errorf("rollback: %d %s", status, answer)
	}
	k.call(t, "iris", "x", "second")
	began = time.Now()
	if status, answer := k.ask(t.Context(), "PUT", k.provider(0)+"/system/models/iris/traffic", map[string]any{
		"split": []map[string]any{{"version": "1_first", "weight": 50}, {"version": "1_third", "weight": 50}},
	}); status != http.StatusOK {
		t.Errorf("split: %d %s", status, answer)
	}
	t.Logf("from splitting to a version that is no longer loaded to the split: %s", time.Since(began).Round(time.Millisecond))
	time.Sleep(5 * time.Second) // what is replaced leaves
	stop()
	clients.Wait()
	if len(lost) > 0 {
		t.Errorf("%d of %d calls were lost, first %s", len(lost), calls, lost[0])
	}
	t.Logf("%d calls, %d lost, answered %v", calls, len(lost), said)

	// Without load, as a figure.
	began = time.Now()
	k.pushZip(t, "iris", iris("fourth"))
	k.change(t, types.FunctionDeployment{Service: "iris", Image: "iris"})
	k.call(t, "iris", "x", "fourth")
	t.Logf("from pushing new coefficients to the first answer with them: %s", time.Since(began).Round(time.Millisecond))
	wrong := iris("fifth")
	wrong["coefficients/said"] = "something else"
	k.pushZip(t, "iris", wrong)
	status, answer := k.ask(t.Context(), "PUT", k.provider(0)+"/system/functions", types.FunctionDeployment{Service: "iris", Image: "iris"})
	if status != http.StatusUnprocessableEntity || !strings.Contains(answer, "something else") {
		t.Errorf("a version with a wrong example: %d %s", status, answer)
	}
	k.call(t, "iris", "x", "fourth")
	k.remove(t, "iris")
}

func (k *keeping) aPodHasNoPrivilegesAndNoCredential(t *testing.T) {
	k.pushZip(t, "privileges", map[string]string{"main.py": telling})
	k.deploy(t, types.FunctionDeployment{Service: "privileges", Image: "privileges:latest"})
	k.call(t, "privileges", "x", toldOf("/bundle/privileges"))

	// What is in the pod's Secret opens this bundle, and is nowhere to be read but there.
	pod := k.pods(t, "privileges")[0]
	name := ""
	for _, v := range pod.Spec.Volumes {
		if v.Secret != nil {
			name = v.Secret.SecretName
		}
	}
	secret, err := k.Client.CoreV1().Secrets(namespace).Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	credential := string(secret.Data["credential"])
	for path, want := range map[string]int{
		"/system/models/privileges/versions/" + pod.Labels["faas-predict/version"] + "/bundle": 200,
		"/system/models/iris/versions/1_first/bundle":                                          401,
		"/system/functions": 401,
	} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", k.provider(0)+path, nil)
		must(t, err)
		r.Header.Set("Authorization", "Bearer "+credential)
		answer, err := http.DefaultClient.Do(r)
		must(t, err)
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s with the pod's credential: %d, want %d", path, answer.StatusCode, want)
		}
	}
	for _, arguments := range [][]string{
		{"-n", namespace, "get", "pods,deployments,configmaps,events", "-o", "yaml"}, {"-n", namespace, "logs", pod.Name, "--all-containers"},
		{"-n", system, "logs", k.providers[0].Name},
	} {
		var out string
		must(t, wait(t.Context(), func() (err error) { // the kubelet knows a little later than callers what runs
			out, err = k.Run(t.Context(), "kubectl", arguments...)
			return err
		}))
		if len(credential) < 40 || strings.Contains(out, credential) {
			t.Errorf("kubectl %v shows the credential", arguments)
		}
	}
	k.remove(t, "privileges")
}

func (k *keeping) packagesAreInstalled(t *testing.T) {
	files := map[string]string{
		"main.py":          "import plants\ndef predict(request): return plants.name()\n",
		"requirements.txt": "plants==1.0\n",
	}
	k.pushZip(t, "packages", files)
	began := time.Now()
	k.deploy(t, types.FunctionDeployment{Service: "packages", Image: "packages"})
	k.call(t, "packages", "x", "a package")
	t.Logf("from deploying to the first answer, with a package: %s", time.Since(began).Round(time.Millisecond))
	files["requirements.txt"] = "roses==1.0\n"
	k.pushZip(t, "packages", files)
	status, said := k.ask(t.Context(), "PUT", k.provider(0)+"/system/functions", types.FunctionDeployment{Service: "packages", Image: "packages"})
	if status != http.StatusUnprocessableEntity || !strings.Contains(said, "roses==1.0") {
		t.Errorf("a package that there is not: %d %s", status, said)
	}
	k.call(t, "packages", "x", "a package")
	k.remove(t, "packages")
}

// Somebody who gets at the provider's disk, or at what is on its way, gets no code into a pod.
func (k *keeping) whatIsNotTheVersionDoesNotRun(t *testing.T) {
	v := k.pushZip(t, "spoilt", iris("as-pushed"))
	file := filepath.Join(k.data, "models", "spoilt", v, "main.py")
	content, err := os.ReadFile(file)
	must(t, err)
	must(t, os.Remove(file))
	must(t, os.WriteFile(file, append(content, "# changed\n"...), 0o644))
	status, said := k.ask(t.Context(), "POST", k.provider(0)+"/system/functions", types.FunctionDeployment{Service: "spoilt", Image: "spoilt"})
	if status != http.StatusUnprocessableEntity || !strings.Contains(said, "gave another bundle than version "+v+": its code is") {
		t.Errorf("deployed: %d %s", status, said)
	}
	k.nothingIsLeft(t)
}

func (k *keeping) aVersionInUseIsNotDeleted(t *testing.T) {
	v := k.pushZip(t, "used", iris("used"))
	k.deploy(t, types.FunctionDeployment{Service: "used", Image: "used"})
	path := k.provider(0) + "/system/models/used/versions/" + v
	if status, said := k.ask(t.Context(), "DELETE", path, ""); status != http.StatusConflict {
		t.Errorf("a version in use is deleted: %d %s", status, said)
	}
	k.remove(t, "used")
	if status, said := k.ask(t.Context(), "DELETE", path, ""); status != http.StatusAccepted {
		t.Errorf("one that nothing uses is not: %d %s", status, said)
	}
	if _, err := os.Stat(filepath.Join(k.data, "models", "used", v)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its files: %v", err)
	}
}

// A pod that starts while there is no provider asks until there is one.
func (k *keeping) aPodWaitsForItsProvider(t *testing.T) {
	k.pushZip(t, "waits", iris("back"))
	k.deploy(t, types.FunctionDeployment{Service: "waits", Image: "waits"})
	scale := func(n string) {
		t.Helper()
		_, err := k.Run(t.Context(), "kubectl", "-n", system, "scale", "deployment/faas-predict", "--replicas", n)
		must(t, err)
	}
	old := k.pods(t, "waits")[0].Name
	scale("0")
	must(t, wait(t.Context(), func() error {
		if serves(k.providers[0]) {
			return errors.New("the provider still serves")
		}
		return nil
	}))
	_, err := k.Run(t.Context(), "kubectl", "-n", namespace, "delete", "pod", "--wait=false", old)
	must(t, err)
	must(t, wait(t.Context(), func() error {
		for _, p := range k.pods(t, "waits") {
			log, _ := k.Run(t.Context(), "kubectl", "-n", namespace, "logs", p.Name, "-c", "fetch")
			if strings.Count(log, "it is tried again") >= 3 {
				return nil
			}
		}
		return errors.New("no pod asks for its bundle")
	}))
	began := time.Now()
	scale("1")
	must(t, k.findProviders(t.Context()))
	must(t, wait(t.Context(), func() error {
		status, said := k.ask(t.Context(), "POST", k.provider(0)+"/function/waits", "x")
		if status != http.StatusOK || said != "back" {
			return fmt.Errorf("%d %s", status, said)
		}
		return nil
	}))
	t.Logf("from the provider's return to the function's answer: %s", time.Since(began).Round(time.Millisecond))

	// Killed while several pods fetch, it comes back by itself, and so do they.
	status, said := 0, ""
	var scaled sync.WaitGroup
	scaled.Go(func() {
		status, said = k.ask(context.WithoutCancel(t.Context()), "POST", k.provider(0)+"/system/scale-function/waits",
			types.ScaleServiceRequest{ServiceName: "waits", Replicas: 4})
	})
	must(t, wait(t.Context(), func() error {
		if n := len(k.pods(t, "waits")); n < 4 {
			return fmt.Errorf("%d pods", n)
		}
		return nil
	}))
	k.KillProvider(t)
	scaled.Wait()
	t.Logf("the request that scaled was answered %d %s", status, said)
	k.StartProvider(t)
	must(t, wait(t.Context(), func() error {
		ready := 0
		for _, p := range k.pods(t, "waits") {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		if ready < 4 {
			return fmt.Errorf("%d pods of 4 are ready", ready)
		}
		return nil
	}))
	k.remove(t, "waits")
}
