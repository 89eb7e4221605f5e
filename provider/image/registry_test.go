package image

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/faas-predict/faas-predict/provider/backend"
)

func TestAConfigurationThatNoImageHasIsNotRead(t *testing.T) {
	for _, size := range []int64{-1, maxConfigBytes + 1} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/v2/":
			case strings.Contains(r.URL.Path, "/manifests/"):
				const docker = "application/vnd.docker.distribution.manifest.v2+json"
				w.Header().Set("Content-Type", docker)
				fmt.Fprintf(w, `{"schemaVersion":2,"mediaType":%q,"layers":[],"config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":%d,"digest":"sha256:%064d"}}`, docker, size, 0)
			default:
				t.Errorf("%s is asked for", r.URL.Path)
				_, _ = io.WriteString(w, "{}")
			}
		}))
		_, err := Registries{}.find(t.Context(), strings.TrimPrefix(server.URL, "http://")+"/me/iris:1")
		server.Close()
		if !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "configuration") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
