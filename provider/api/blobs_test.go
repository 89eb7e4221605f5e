package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// registryServer serves a registry of its own, without credentials.
func registryServer(t *testing.T, maxUpload int64) *httptest.Server {
	t.Helper()
	dir := t.TempDir()
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "state.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	models, err := registry.Open(db, dir, model.DefaultLimits, maxUpload)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(New(Options{Backend: &fake{}, Functions: &fake{}, Gateway: gatewayOf(&fake{}, prometheus.NewRegistry()), Models: models, Version: "v1", Metrics: prometheus.NewRegistry()}))
	t.Cleanup(front.Close)
	return front
}

func send(t *testing.T, method, url, contentType string, body []byte) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, strings.TrimSpace(string(answer))
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func TestPushByDigestSendsWhatIsMissing(t *testing.T) {
	front := registryServer(t, 100)
	const code = "def predict(request): return request\n"
	list, err := json.Marshal(FileList{[]model.File{{Path: "main.py", Size: int64(len(code)), SHA256: digest(code)}}})
	if err != nil {
		t.Fatal(err)
	}
	missing := `{"missing":["` + digest(code) + `"]}`
	blob := front.URL + "/system/blobs/" + digest(code)
	other := strings.Replace(blob, digest(code), digest("x"), 1)
	for _, c := range []struct {
		what, method, url, kind, body string
		status                        int
		answer                        string // what it holds
	}{
		{"ask", "POST", front.URL + "/system/blobs/missing", "application/json", `{"sha256":["` + digest(code) + `"]}`, 200, missing},
		{"ask for no digest", "POST", front.URL + "/system/blobs/missing", "application/json", `{"sha256":["x"]}`, 400, "64 lower-case hex digits"},
		{"ask in no JSON", "POST", front.URL + "/system/blobs/missing", "application/json", `x`, 400, "not the JSON"},
		{"ask for nothing", "POST", front.URL + "/system/blobs/missing", "application/json", `{}`, 200, `{"missing":[]}`},
		{"push too early", "PUT", front.URL + "/system/models/iris", "application/json", string(list), 412, missing},
		{"other content", "PUT", other, "application/octet-stream", code, 400, digest(code)},
		{"too large", "PUT", other, "application/octet-stream", strings.Repeat("x", 101), 413, "100 bytes"},
		{"upload", "PUT", blob, "application/octet-stream", code, 201, ""},
		{"upload again", "PUT", blob, "application/octet-stream", code, 200, ""},
		{"push", "PUT", front.URL + "/system/models/iris", "application/json; charset=utf-8", string(list), 201, `"code_new_bytes":37`},
		{"push again", "PUT", front.URL + "/system/models/iris", "application/json", string(list), 200, `"state":"registered"`},
		{"a list that leaves", "PUT", front.URL + "/system/models/iris", "application/json", strings.Replace(string(list), "main.py", "../main.py", 1), 400, "leaves the bundle"},
		{"a zip that is none", "PUT", front.URL + "/system/models/iris", "application/zip", `{"files":[]}`, 400, "not a zip"},
	} {
		status, answer := send(t, c.method, c.url, c.kind, []byte(c.body))
		if status != c.status || !strings.Contains(answer, c.answer) {
			t.Errorf("%s: %d %s, want %d %s", c.what, status, answer, c.status, c.answer)
		}
	}
}

func TestTornUploadLeavesNothing(t *testing.T) {
	front := registryServer(t, 1<<20)
	conn, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "PUT /system/blobs/"+digest("ab")+" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
	conn.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400") {
		t.Errorf("%s, %v", answer, err)
	}
	conn.Close()
	if _, missing := send(t, "POST", front.URL+"/system/blobs/missing", "application/json", []byte(`{"sha256":["`+digest("ab")+`"]}`)); !strings.Contains(missing, digest("ab")) {
		t.Errorf("half a blob is stored: %s", missing)
	}
}
