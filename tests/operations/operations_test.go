// Package operations holds docs/operations.md against the code: every setting, environment variable, endpoint
// and metric of the three programs is in its tables, and nothing else. After a change of the code,
//
//	go test ./tests/operations -write
//
// writes the tables anew; what stands around them stays.
package operations

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	authconfig "github.com/faas-predict/faas-predict/auth/config"
	"github.com/faas-predict/faas-predict/auth/forward"
	"github.com/faas-predict/faas-predict/auth/issuer"
	"github.com/faas-predict/faas-predict/provider/api"
	"github.com/faas-predict/faas-predict/provider/config"
	guidetable "github.com/faas-predict/faas-predict/tests/guide"
	"github.com/faas-predict/faas-predict/watchdog/link"
	"github.com/faas-predict/faas-predict/watchdog/server"
)

const (
	root  = "../.."
	guide = root + "/docs/operations.md"
)

var write = flag.Bool("write", false, "write the tables of docs/operations.md anew")

func TestGuideListsEverySettingEndpointAndMetric(t *testing.T) {
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	after := string(text)
	for _, table := range []struct {
		heading string
		head    []string
		rows    [][]string
	}{
		{"## Settings", []string{"variable", "faas-predict serve", "fwatchdog", "faas-auth serve"}, settings()},
		{"## Other environment variables", []string{"variable", "read by"}, variables(t)},
		{"## Endpoints", []string{"path", "methods", "program", "who may"}, endpoints(t)},
		{"## Metrics", []string{"metric", "program", "meaning"}, metrics(t)},
	} {
		after = replaceTable(t, after, table.heading, table.head, table.rows)
	}
	if *write {
		if err := os.WriteFile(guide, []byte(after), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(strings.Split(after, "\n"), strings.Split(string(text), "\n")); diff != "" {
		t.Errorf("what the code says (-) and what docs/operations.md says (+); go test ./tests/operations -write writes it:\n%s", diff)
	}
}

// replaceTable replaces the first table below a heading. What follows in a row of more cells than the head has,
// for people to write, is not kept: there is none.
func replaceTable(t *testing.T, text, heading string, head []string, rows [][]string) string {
	t.Helper()
	before, section, found := strings.Cut(text, "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %q", guide, heading)
	}
	lines := strings.Split(section, "\n")
	isRow := func(line string) bool { return strings.HasPrefix(line, "|") }
	first := slices.IndexFunc(lines, isRow)
	next := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "## ") })
	if first < 0 || next >= 0 && next < first {
		t.Fatalf("%s has no table below %q", guide, heading)
	}
	last := first
	for last < len(lines) && isRow(lines[last]) {
		last++
	}
	table := []string{"| " + strings.Join(head, " | ") + " |", strings.Repeat("|---", len(head)) + "|"}
	for _, row := range rows {
		table = append(table, "| "+strings.Join(row, " | ")+" |")
	}
	lines = slices.Concat(lines[:first], table, lines[last:])
	return before + "\n" + heading + "\n" + strings.Join(lines, "\n")
}

func code(text string) string { return "`" + text + "`" }

// derived are the defaults that depend on the machine or on other settings.
var derived = map[string]string{"data_dir": "by user", "issuer_url": "by address"}

// settings has a row for each variable, with the default of each program that reads it.
func settings() [][]string {
	type row [3]string
	all := map[string]*row{}
	add := func(program int, name, value string) {
		if all[name] == nil {
			all[name] = &row{}
		}
		switch words, ok := derived[name]; {
		case ok && program != 1:
			value = words
		case value == "":
			value = "empty"
		case strings.Contains(value, " "): // words
		default:
			value = code(value)
		}
		all[name][program] = value
	}
	for _, s := range config.Settings {
		add(0, s.Name, s.Default)
	}
	for _, s := range server.Variables {
		add(1, s.Name, s.Default)
	}
	for _, s := range authconfig.Settings {
		add(2, s.Name, s.Default)
	}
	var rows [][]string
	for name, r := range all {
		rows = append(rows, []string{code(name), r[0], r[1], r[2]})
	}
	return sorted(rows)
}

func sorted(rows [][]string) [][]string {
	slices.SortFunc(rows, slices.Compare[[]string])
	return slices.CompactFunc(rows, slices.Equal[[]string])
}

func endpoints(t *testing.T) [][]string {
	type key struct{ path, program string }
	methods := map[key][]string{}
	add := func(program, method, path string) {
		if method == "" {
			method = "any"
		}
		k := key{path, program}
		methods[k] = append(methods[k], method)
	}
	for _, r := range api.Routes {
		add("faas-predict", r.Method, r.Path)
	}
	for _, program := range []string{"faas-predict", "faas-auth"} {
		for _, r := range issuer.Routes {
			add(program, r.Method, r.Path)
		}
		add(program, "", forward.DefaultPath)
	}
	for _, r := range issuer.AdminRoutes {
		add("faas-predict", r.Method, r.Path)
		add("faas-auth on admin.sock", r.Method, r.Path)
	}
	add("faas-auth", "GET", "/healthz")
	add("faas-auth on metrics_port", "GET", "/metrics")
	add("fwatchdog on metrics_port", "GET", "/metrics")
	add("fwatchdog", "", "/")
	probe, pattern := regexp.MustCompile(`^/_/[a-z]+$`), regexp.MustCompile(`^(GET|PUT|POST|DELETE) (/[a-z/_]+)$`)
	sources(t, "watchdog", func(_ string, file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			text := literal(n)
			if probe.MatchString(text) && text != link.Path {
				add("fwatchdog", "GET", text)
			}
			if m := pattern.FindStringSubmatch(text); m != nil && m[2] != "/metrics" {
				add("fwatchdog on admin_socket", m[1], m[2])
			}
			return true
		})
	})
	add("fwatchdog on admin_socket", "GET", "/metrics")
	add("fwatchdog on admin_socket", "GET", link.Path)
	add("fwatchdog", "GET", link.Path)
	var rows [][]string
	for k, all := range methods {
		slices.Sort(all)
		rows = append(rows, []string{code(k.path), strings.Join(slices.Compact(all), ", "), k.program, who(k.program, k.path)})
	}
	return sorted(rows)
}

// who may ask, as the guides say it.
func who(program, path string) string {
	_, socket, onSocket := strings.Cut(program, " on ")
	switch {
	case onSocket && strings.Contains(socket, "sock"):
		return "who may open the socket"
	case strings.HasSuffix(path, "/versions/{version}/bundle"):
		return "administrators, pods of the version"
	case strings.HasPrefix(path, "/system"):
		return "administrators"
	case strings.HasPrefix(path, "/function/"), program == "fwatchdog" && (path == "/" || path == link.Path):
		return "whom the function lets"
	case strings.HasPrefix(path, "/oauth/") && path != "/oauth/revocations":
		return "registered clients"
	}
	return "everyone"
}

// programs tells by a folder which programs have what is in it.
func programs(file string) string {
	switch {
	case strings.Contains(file, "/provider/"):
		return "faas-predict"
	case strings.Contains(file, "/watchdog/"):
		return "fwatchdog"
	}
	return "faas-predict, faas-auth"
}

// metrics finds the names of metrics with their help texts: in the options of Prometheus's library, and side by
// side as arguments.
func metrics(t *testing.T) [][]string {
	name := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)+$`)
	var rows [][]string
	for _, folder := range []string{"auth", "watchdog", "provider"} {
		sources(t, folder, func(path string, file *ast.File) {
			if !slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool { return strings.Contains(i.Path.Value, "client_golang/prometheus") }) {
				return
			}
			add := func(metric, help string) {
				if name.MatchString(metric) && strings.Contains(help, " ") {
					rows = append(rows, []string{code(metric), programs(path), strings.TrimSuffix(help, ".")})
				}
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CallExpr:
					for i := range len(n.Args) - 1 {
						add(literal(n.Args[i]), literal(n.Args[i+1]))
					}
				case *ast.CompositeLit:
					fields := map[string]string{}
					for i, e := range n.Elts {
						if pair, ok := e.(*ast.KeyValueExpr); ok {
							if key, ok := pair.Key.(*ast.Ident); ok {
								fields[key.Name] = literal(pair.Value)
							}
						} else if i+1 < len(n.Elts) {
							add(literal(e), literal(n.Elts[i+1]))
						}
					}
					add(fields["Name"], fields["Help"])
				}
				return true
			})
		})
	}
	rows = append(rows, []string{code("go_*") + ", " + code("process_*"), "all three", "Go's and the process's own: memory, goroutines, CPU, open files"})
	return sorted(rows)
}

// variables finds what is read from the environment beside settings.
func variables(t *testing.T) [][]string {
	known := map[string]bool{}
	for _, row := range settings() {
		known[row[0]] = true
	}
	readers := map[string][]string{}
	for _, folder := range []string{"auth", "watchdog", "provider"} {
		sources(t, folder, func(path string, file *ast.File) {
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) != 1 {
					return true
				}
				if f, ok := call.Fun.(*ast.SelectorExpr); ok && (f.Sel.Name == "Getenv" || f.Sel.Name == "LookupEnv") {
					if name := code(literal(call.Args[0])); name != "``" && !known[name] {
						readers[name] = append(readers[name], strings.Split(programs(path), ", ")...)
					}
				}
				return true
			})
		})
	}
	var rows [][]string
	for name, programs := range readers {
		slices.Sort(programs)
		rows = append(rows, []string{name, strings.Join(slices.Compact(programs), ", ")})
	}
	return sorted(rows)
}

// literal is the text of a string literal, "" of anything else.
func literal(n ast.Node) string {
	if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
		text, _ := strconv.Unquote(lit.Value)
		return text
	}
	return ""
}

// sources parses the files of the programs in a folder.
func sources(t *testing.T, folder string, each func(path string, file *ast.File)) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err == nil {
			files++
			each(filepath.ToSlash(path), file)
		}
		return err
	})
	if err != nil || files == 0 {
		t.Fatalf("read the code in %s: %d files, %v", folder, files, err)
	}
}

func TestUnitFilesOfTheGuideAreGood(t *testing.T) {
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	units := regexp.MustCompile("(?s)\n```ini\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(units) != 2 {
		t.Fatalf("%d unit files, want faas-predict's and faas-auth's", len(units))
	}
	for i, unit := range units {
		file := filepath.Join(t.TempDir(), "unit"+strconv.Itoa(i)+".service")
		// systemd looks whether there is such a program.
		content := regexp.MustCompile(`/usr/local/bin/faas-\w+`).ReplaceAllString(unit[1], "/bin/true")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		// What it finds strange it says and takes for no error.
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput(); err != nil || strings.Contains(string(out), filepath.Base(file)) {
			t.Errorf("%s\n%v: %s", unit[1], err, out)
		}
	}
}

func TestAlertsAreAboutMetricsThatThereAre(t *testing.T) {
	known := map[string]bool{}
	for _, row := range metrics(t) {
		known[strings.Trim(row[0], "`")] = true
	}
	// What stands before a selector of labels or of a range is a metric.
	selector := regexp.MustCompile(`([a-z_]+)[{\[]`)
	checked := 0
	for _, cells := range guidetable.Table(t, guide, "## What to alert on") {
		for _, m := range selector.FindAllStringSubmatch(cells[1], -1) {
			if name := strings.TrimSuffix(m[1], "_bucket"); name != "up" && !known[name] {
				t.Errorf("%s: there is no metric %s", cells[0], name)
			}
			checked++
		}
	}
	if checked < 8 {
		t.Errorf("only %d metrics in the table", checked)
	}
}
