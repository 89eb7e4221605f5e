package image

import (
	"errors"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// inspector reads what images hold, as a backend does whose engine runs them.
func inspector(t *testing.T) Registries {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	return Registries{MaxBytes: 8 << 20, Limits: model.DefaultLimits, Scratch: t.TempDir()}
}

func digest(t *testing.T, img interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// wantInspected holds what an image is said to hold, and that nothing of it is kept.
func wantInspected(t *testing.T, r Registries, ref string, want cluster.Image) {
	t.Helper()
	got, err := r.Inspect(t.Context(), ref)
	if err != nil || got.Ref != want.Ref || got.Model != want.Model || got.Version != want.Version {
		t.Errorf("%s holds %+v (%v), want %+v", ref, got, err, want)
	}
	if left, err := os.ReadDir(r.Scratch); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestAnImageHoldsWhatItsLabelsSayAndElseWhatIsInIt(t *testing.T) {
	r, s := inspector(t), startStore(t, nil)
	v := versionOf(t, map[string]string{"main.py": code})
	content := layer(t, entry{name: at + "main.py", content: code})
	base := layer(t, entry{name: "usr/lib/big", content: incompressible(1 << 20)})

	img := build(t, Labels("flower", "python3", v), base, content)
	ref := s.push(t, "me/iris:1", img)
	pinned := s.host + "/me/iris@" + digest(t, img)
	s.gave.Store(0)
	wantInspected(t, r, ref, cluster.Image{Ref: pinned, Model: "flower", Version: v.ID})
	if n := s.gave.Load(); n > 5<<10 {
		t.Errorf("the registry gave %d bytes of a labelled image, whose layers nobody has to read", n)
	}

	for what, labels := range map[string]map[string]string{
		"without labels":               nil,
		"with those of its base":       {ModelLabel: "Some/Distribution", VersionLabel: "22.04"},
		"with a version and no digest": {ModelLabel: "flower", VersionLabel: "1_1"},
		"with digests of something":    {VersionLabel: "1.0", CodeDigestLabel: v.CodeDigest, CoefficientsDigestLabel: v.CoefficientsDigest},
	} {
		t.Run(what, func(t *testing.T) {
			img := build(t, labels, base, content)
			ref := s.push(t, "me/iris:2", img)
			wantInspected(t, r, ref, cluster.Image{Ref: s.host + "/me/iris@" + digest(t, img), Model: "iris", Version: v.ID})
		})
	}

	_, err := r.Inspect(t.Context(), s.push(t, "nothing:1", build(t, nil, base)))
	if !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "it has no model in /home/app/function; build it from a template") {
		t.Errorf("an image without a model: %v", err)
	}
	_, err = r.Inspect(t.Context(), s.host+"/not-there:1")
	if !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "the registry does not give it") {
		t.Errorf("an image that is not there: %v", err)
	}
}

// Nodes may be of several platforms, none of which needs to be this machine's.
func TestAnImageOfSeveralPlatformsKeepsThemAll(t *testing.T) {
	r, s := inspector(t), startStore(t, nil)
	v := versionOf(t, map[string]string{"main.py": code})
	labelled := build(t, Labels("iris", "python3", v), layer(t, entry{name: at + "main.py", content: code}))
	attestation := build(t, nil, layer(t, entry{name: "attestation", content: "x"}))
	for _, architectures := range [][]string{{"s390x", goarch}, {"s390x", "riscv64"}} {
		index := mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: attestation, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
		for _, architecture := range architectures {
			index = mutate.AppendManifests(index,
				mutate.IndexAddendum{Add: labelled, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: architecture}}})
		}
		ref := s.push(t, "iris:several", index.(remote.Taggable))
		wantInspected(t, r, ref, cluster.Image{Ref: s.host + "/iris@" + digest(t, index), Model: "iris", Version: v.ID})
	}
}

func TestAnImageIsPinnedToTheDigestOfItsOwnRegistry(t *testing.T) {
	const digest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	known := []string{"other.example/iris" + digest, "registry.example:5000/me/iris" + digest, "iris" + digest}
	for ref, want := range map[string]string{
		"registry.example:5000/me/iris:1": known[1],
		"docker.io/library/iris:latest":   known[2],
		"built-here:1":                    "built-here:1",
		"registry.example/me/iris:1":      "registry.example/me/iris:1",
	} {
		if got := pin(ref, known); got != want {
			t.Errorf("%s is pinned to %s, want %s", ref, got, want)
		}
	}
}
