package conformance

import (
	"net/http"
	"strings"
	"testing"

	"github.com/openfaas/faas-provider/types"
)

// TakenImages are images of a model that answers "version 1: " and the request.
type TakenImages struct {
	// Unlabelled has no labels, and version 1.1_1 in it. Private is in a registry that wants a password, which the
	// provider and the nodes were given as the guide says. Closed is in one whose password nobody has.
	Unlabelled, Private, Closed string
}

// Images holds an engine's backend to which images it takes. forget has the node forget what it has pulled, so that it
// must ask the registry anew when the function comes back from zero; nil where the node is the first to pull.
func Images(t *testing.T, h Harness, images TakenImages, forget func(*testing.T)) {
	s := &suite{Harness: h}
	before := h.Left(t)
	deploy := func(image string) (int, error) {
		return s.client(t).Deploy(t.Context(), types.FunctionDeployment{Service: function, Image: image})
	}
	status, err := deploy(images.Closed)
	if err == nil || status != http.StatusBadRequest || !strings.Contains(err.Error(), images.Closed) {
		t.Errorf("an image that the registry gives to nobody: %d %v, want 400 and its name", status, err)
	}
	for what, image := range map[string]string{"an image without labels": images.Unlabelled, "an image behind a password": images.Private} {
		if status, err := deploy(image); err != nil || status != http.StatusAccepted {
			t.Fatalf("deploy %s: %d %v", what, status, err)
		}
		s.wantCall(t, "x", "version 1: x", "1")
		if image == images.Private && forget != nil {
			s.scaleTo(t, 0)
			forget(t)
			s.scaleTo(t, 1)
			s.wantCall(t, "x", "version 1: x", "1")
		}
		must(t, s.client(t).DeleteFunction(t.Context(), function, ""))
		s.nothingLeft(t, before)
	}
}

// Bundle is the model of the tests as version 1.1_1.
func Bundle() map[string]string { return bundle("1") }
