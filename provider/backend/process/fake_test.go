package process

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// fakeFwatchdog is what the test binary becomes when a backend starts it as fwatchdog: the same
// environment, sockets and signals, and instead of a model the words in the bundle's main.py.
//
//	fail: TEXT    init fails with TEXT
//	exit          ends before it is ready
//	slow: MS      init takes so long
//	status: CODE  every call is answered with that status
//	while: TEXT   what is told meanwhile, instead of that init is running
//
// The path of a call says what to do with it; any other path gives the body back.
func fakeFwatchdog() {
	words, err := os.ReadFile(filepath.Join(os.Getenv("model_path"), "main.py"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	word := func(name string) string {
		for line := range strings.Lines(string(words)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "# "+name+":"); ok {
				return strings.TrimSpace(value)
			}
		}
		return ""
	}
	var workers atomic.Int64
	n, _ := strconv.ParseInt(os.Getenv("workers"), 10, 64)
	workers.Store(n)
	slow, _ := strconv.Atoi(word("slow"))
	readyAt := time.Now().Add(time.Duration(slow) * time.Millisecond)

	admin := http.NewServeMux()
	admin.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case time.Now().Before(readyAt):
			w.WriteHeader(http.StatusServiceUnavailable)
			json.NewEncoder(w).Encode(map[string]string{"detail": cmp.Or(word("while"), "init is running")})
		case word("fail") != "":
			w.WriteHeader(http.StatusServiceUnavailable)
			json.NewEncoder(w).Encode(map[string]any{"detail": word("fail"), "final": true})
		}
	})
	report := func(w http.ResponseWriter) {
		fmt.Fprintf(w, `{"workers":%d,"ready":%d}`, workers.Load(), workers.Load())
	}
	admin.HandleFunc("GET /workers", func(w http.ResponseWriter, _ *http.Request) { report(w) })
	admin.HandleFunc("PUT /workers", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Workers int64 }
		if json.NewDecoder(r.Body).Decode(&body) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		workers.Store(body.Workers)
		report(w)
	})
	functions := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if code, err := strconv.Atoi(word("status")); err == nil {
			w.WriteHeader(code)
		}
		fakeCall(w, r)
	})}
	for path, server := range map[string]*http.Server{
		os.Getenv("admin_socket"): {Handler: admin},
		os.Getenv("socket_path"):  functions,
	} {
		listener, err := net.Listen("unix", path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go server.Serve(listener)
	}
	fmt.Println("fake fwatchdog serves", string(words))
	if strings.Contains(string(words), "# exit") {
		os.Exit(3)
	}
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	<-terminate
	functions.Shutdown(context.Background())
	os.Exit(0)
}

func fakeCall(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/words":
		words, _ := os.ReadFile(filepath.Join(os.Getenv("model_path"), "main.py"))
		w.Write(words)
	case "/env":
		json.NewEncoder(w).Encode(os.Environ())
	case "/whoami":
		fmt.Fprint(w, os.Getuid())
	case "/pid":
		fmt.Fprint(w, os.Getpid())
	case "/secret":
		value, err := os.ReadFile(filepath.Join(os.Getenv("secret_mount_path"), r.URL.Query().Get("name")))
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
		}
		w.Write(value)
	case "/slow":
		ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		fmt.Fprint(w, "done")
	case "/crash":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "/print":
		fmt.Println(r.URL.Query().Get("text"))
	case "/lines":
		http.NewResponseController(w).EnableFullDuplex()
		for scan := bufio.NewScanner(r.Body); scan.Scan(); {
			fmt.Fprintf(w, "%s\n", scan.Text())
			http.NewResponseController(w).Flush()
		}
	default:
		io.Copy(w, r.Body)
	}
}
