package runner

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What distributions install, in short.
const (
	rScript  = "#!/bin/bash\nR_HOME_DIR=%/lib/R\nR_SHARE_DIR=/usr/share/R/share\nexport R_SHARE_DIR\nR_INCLUDE_DIR=/i\nR_DOC_DIR=/d\n  R_HOME_DIR=\"/usr/${libnn}/R\"\n"
	rLdpaths = ": ${JAVA_HOME=/jvm}\n: ${R_JAVA_LD_LIBRARY_PATH=${JAVA_HOME}/server}\nif test -n \"/x\"; then\n: ${R_LD_LIBRARY_PATH=${R_HOME}/lib:/x}\nelse\n: ${R_LD_LIBRARY_PATH=${R_HOME}/lib}\nfi\n"
	program  = "\x7fELF"
)

func TestRStartsWithoutItsScript(t *testing.T) {
	usual := map[string]string{"bin/Rscript": program, "bin/R": rScript, "lib/R/bin/exec/R": program, "lib/R/etc/ldpaths": rLdpaths}
	for _, c := range []struct {
		name    string
		other   map[string]string // than usual; "" is left out
		environ []string
		starts  string // % is the folder; "" when Rscript is to be run
		library string // LD_LIBRARY_PATH
	}{
		{name: "as installed", starts: "%/lib/R/bin/exec/R", library: "%/lib/R/lib:/x:/jvm/server"},
		{name: "with a path of the user's", environ: []string{"LD_LIBRARY_PATH=/mine"}, starts: "%/lib/R/bin/exec/R", library: "%/lib/R/lib:/x:/jvm/server:/mine"},
		{name: "with paths of R's set", environ: []string{"R_LD_LIBRARY_PATH=/r", "JAVA_HOME=/j"}, starts: "%/lib/R/bin/exec/R", library: "/r:/j/server"},
		{name: "Rscript is a wrapper", other: map[string]string{"bin/Rscript": "#!/bin/sh\n"}},
		{name: "R is not R's script", other: map[string]string{"bin/R": "#!/bin/sh\nR_HOME_DIR=%/lib/R\n"}},
		{name: "there is no R", other: map[string]string{"bin/R": ""}},
		{name: "the program is elsewhere", other: map[string]string{"lib/R/bin/exec/R": ""}},
		{name: "the program is a script", other: map[string]string{"lib/R/bin/exec/R": "#!/bin/sh\n"}},
		{name: "no library paths", other: map[string]string{"lib/R/etc/ldpaths": ""}},
		{name: "Rscript is told another R", environ: []string{"RHOME=/opt/R"}},
		{name: "Rscript is told packages", environ: []string{"R_SCRIPT_DEFAULT_PACKAGES=base"}},
		{name: "R is told an architecture", environ: []string{"R_ARCH=/i386"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			files := maps.Clone(usual)
			maps.Copy(files, c.other)
			for name, content := range files {
				if content != "" {
					write(t, filepath.Join(dir, name), strings.ReplaceAll(content, "%", dir))
				}
			}
			starts, more, ok := withoutShell(filepath.Join(dir, "bin", "Rscript"), c.environ)
			if want := strings.ReplaceAll(c.starts, "%", dir); starts != want || ok != (want != "") {
				t.Fatalf("%q %v, want %q", starts, ok, want)
			}
			if !ok {
				return
			}
			for _, want := range []string{
				"R_HOME=" + dir + "/lib/R", "R_SHARE_DIR=/usr/share/R/share", "R_INCLUDE_DIR=/i", "R_DOC_DIR=/d", "R_ARCH=",
				"LD_LIBRARY_PATH=" + strings.ReplaceAll(c.library, "%", dir),
			} {
				if !slices.Contains(more, want) {
					t.Errorf("no %s in %q", want, more)
				}
			}
		})
	}
}

func TestOnlyRscriptIsReplaced(t *testing.T) {
	for _, interpreter := range []string{"python3", "/usr/bin/perl", "Rscript-devel"} {
		if program, _, ok := withoutShell(interpreter, nil); ok {
			t.Errorf("%s becomes %s", interpreter, program)
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}
