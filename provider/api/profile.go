package api

import (
	"net/http"
	"net/http/pprof" // nobody serves http.DefaultServeMux, where it adds its routes
)

// profile serves net/http/pprof where the setting pprof says so. It is below /system, so that only an
// administrator can look: a profile tells what the program holds, and taking one costs.
func (s *Server) profile(w http.ResponseWriter, r *http.Request) {
	if !s.profiling {
		http.Error(w, "profiles are off: set pprof=true", http.StatusNotFound)
		return
	}
	handler := pprof.Index
	switch r.PathValue("profile") {
	case "cmdline":
		http.NotFound(w, r) // flags are not a profile
		return
	case "profile":
		handler = pprof.Profile
	case "symbol":
		handler = pprof.Symbol
	case "trace":
		handler = pprof.Trace
	}
	http.StripPrefix("/system", http.HandlerFunc(handler)).ServeHTTP(w, r)
}
