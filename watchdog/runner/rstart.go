package runner

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What R's starter, the shell script R, says for the shell: where R is installed, and in etc/ldpaths the values of what
// has none yet.
var (
	rFolder  = regexp.MustCompile(`(?m)^(R_HOME_DIR|R_SHARE_DIR|R_INCLUDE_DIR|R_DOC_DIR)=(/[^\s"$]*)$`)
	rDefault = regexp.MustCompile(`(?m)^: \$\{(\w+)=(.*)\}$`)
)

// withoutShell returns the program that Rscript ends in, and what has to be added to environ for it. Rscript runs the
// shell script R, which sets some variables and runs that program; doing the same here makes images work that have no
// shell. It reports false where the interpreter is to be run itself: it is not Rscript, or a wrapper of it; the script
// beside it is not the one that R comes with; or environ has settings that only these two know.
func withoutShell(interpreter string, environ []string) (program string, more []string, ok bool) {
	if filepath.Base(interpreter) != "Rscript" {
		return "", nil, false
	}
	path, err := exec.LookPath(interpreter)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil || !isBinary(path) {
		return "", nil, false
	}
	env := map[string]string{}
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	for _, name := range []string{"RHOME", "R_ARCH", "R_SCRIPT_DEFAULT_PACKAGES"} {
		if env[name] != "" {
			return "", nil, false
		}
	}
	script, err := os.ReadFile(filepath.Join(filepath.Dir(path), "R"))
	if err != nil {
		return "", nil, false
	}
	set := func(name, value string) {
		env[name] = value
		more = append(more, name+"="+value)
	}
	for _, found := range rFolder.FindAllSubmatch(script, -1) {
		name := string(found[1])
		if name == "R_HOME_DIR" {
			name = "R_HOME"
		}
		set(name, string(found[2]))
	}
	paths, err := os.ReadFile(filepath.Join(env["R_HOME"], "etc", "ldpaths"))
	program = filepath.Join(env["R_HOME"], "bin", "exec", "R")
	if err != nil || len(more) != 4 || !isBinary(program) {
		return "", nil, false
	}
	for _, found := range rDefault.FindAllSubmatch(paths, -1) {
		if _, known := env[string(found[1])]; !known {
			env[string(found[1])] = os.Expand(string(found[2]), func(name string) string { return env[name] })
		}
	}
	libraries := slices.DeleteFunc([]string{env["R_LD_LIBRARY_PATH"], env["R_JAVA_LD_LIBRARY_PATH"], env["LD_LIBRARY_PATH"]},
		func(path string) bool { return path == "" })
	set("LD_LIBRARY_PATH", strings.Join(libraries, ":"))
	set("R_ARCH", "")
	return program, more, true
}

// profileWithoutShell is what R reads as its site profile where there is no shell. R looks for the program uname when it
// loads the package utils, by Sys.which, which asks a shell; without one nothing that it could find could be run. The site
// profile that R would have read comes next.
const profileWithoutShell = `local({
  unlockBinding("Sys.which", baseenv())
  assign("Sys.which", function(names) structure(character(length(names)), names = names), envir = baseenv())
  lockBinding("Sys.which", baseenv())
  site <- Sys.getenv("FWATCHDOG_R_PROFILE", file.path(R.home("etc"), "Rprofile.site"))
  if (file.exists(site)) sys.source(site, envir = baseenv())
})
`

// profile returns what has to be in R's environment besides where there is no shell; a file in dir belongs to it.
func profile(dir string) ([]string, error) {
	if unix.Access("/bin/sh", unix.X_OK) == nil {
		return nil, nil
	}
	file := filepath.Join(dir, "profile.R")
	if err := os.WriteFile(file, []byte(profileWithoutShell), 0o600); err != nil {
		return nil, err
	}
	out := []string{"R_PROFILE=" + file}
	if own, set := os.LookupEnv("R_PROFILE"); set {
		out = append(out, "FWATCHDOG_R_PROFILE="+own)
	}
	return out, nil
}

// isBinary reports whether the kernel runs the file by itself, not by a shell.
func isBinary(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	info, err := file.Stat()
	magic := make([]byte, 4)
	n, _ := file.Read(magic)
	return err == nil && info.Mode()&0o111 != 0 && bytes.Equal(magic[:n], []byte("\x7fELF"))
}
