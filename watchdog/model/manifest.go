package model

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"path"
	"regexp"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"gopkg.in/yaml.v3"
)

// ManifestName is the manifest's path inside a bundle.
const ManifestName = "model.yml"

// maxManifestBytes bounds what is handed to the YAML parser, whose aliases can expand.
const maxManifestBytes = 1 << 20

// The values of Manifest.Runtime.
const (
	RuntimePython = "python3"
	RuntimeR      = "r"
)

// The values of Manifest.StartMethod.
const (
	StartFork  = "fork"
	StartSpawn = "spawn"
)

const defaultContentType = "text/plain; charset=utf-8"

// Manifest is a bundle's model.yml with every default filled in.
type Manifest struct {
	// Name is a DNS label. It defaults to the name of the bundle's directory or zip.
	Name string `yaml:"name" json:"name"`
	// Runtime is RuntimePython or RuntimeR; it defaults to the entry's suffix.
	Runtime string `yaml:"runtime" json:"runtime"`
	// Entry is the file that defines predict; it defaults to main.py or main.R.
	Entry string `yaml:"entry" json:"entry"`
	// Coefficients are doublestar globs. Left out, they are coefficients/** and the usual suffixes
	// of weight files, and may match nothing.
	Coefficients []string `yaml:"coefficients" json:"coefficients,omitempty"`
	// CodeVersion and CoefficientsVersion are optional labels for the two halves of the version.
	CodeVersion         string `yaml:"code_version" json:"code_version,omitempty"`
	CoefficientsVersion string `yaml:"coefficients_version" json:"coefficients_version,omitempty"`
	// ContentType of an answer; it defaults to text/plain; charset=utf-8.
	ContentType string `yaml:"content_type" json:"content_type"`
	// StartMethod is StartFork (the default: one init, workers share its memory) or StartSpawn
	// (each worker runs init itself).
	StartMethod string `yaml:"start_method" json:"start_method"`
	// Examples must be answered exactly before a version gets traffic.
	Examples []Example `yaml:"examples" json:"examples,omitempty"`
}

// Example is a request and the response that predict must give to it, byte for byte.
type Example struct {
	Request  string `yaml:"request" json:"request"`
	Response string `yaml:"response" json:"response"`
}

var (
	labelPattern = regexp.MustCompile(`^[A-Za-z0-9.-]{1,40}$`)
	namePattern  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// runtimeOf maps an entry's suffix to the runtime that reads it.
var runtimeOf = map[string]string{".py": RuntimePython, ".R": RuntimeR, ".r": RuntimeR}

// defaultCoefficients are the globs of a bundle that names none: the folder of the convention, and
// the suffixes by which training frameworks save weights.
var defaultCoefficients = []string{
	"coefficients/**",
	"**/*.{bin,caffemodel,cbm,ckpt,gguf,h5,hdf5,joblib,keras,model,npy,npz,onnx,pb,pdparams,pickle,pkl,pmml}",
	"**/*.{pt,pth,RData,rda,rds,safetensors,skops,tflite,ubj,weights}",
}

// ValidName reports whether s can name a model or a function: a DNS label of RFC 1123.
func ValidName(s string) bool { return namePattern.MatchString(s) }

// parseManifest decodes model.yml strictly and checks each field by itself; what depends on the
// bundle's other files is settled by resolve.
func parseManifest(raw []byte) (Manifest, error) {
	var m Manifest
	if len(raw) > maxManifestBytes {
		return m, refused(ManifestName, "is larger than %d bytes", maxManifestBytes)
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&m); err != nil && !errors.Is(err, io.EOF) {
		return m, refused(ManifestName, "%s", yamlReason(err))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return m, refused(ManifestName, "holds more than one YAML document")
	}
	if m.Name != "" && !ValidName(m.Name) {
		return m, refused(ManifestName, "name %q must be lower-case letters, digits and '-', at most 63, not starting or ending with '-'", m.Name)
	}
	for field, label := range map[string]string{"code_version": m.CodeVersion, "coefficients_version": m.CoefficientsVersion} {
		if label != "" && !labelPattern.MatchString(label) {
			return m, refused(ManifestName, "%s %q must match [A-Za-z0-9.-]{1,40}", field, label)
		}
	}
	switch m.Runtime {
	case "", RuntimePython, RuntimeR:
	default:
		return m, refused(ManifestName, "runtime %q must be python3 or r", m.Runtime)
	}
	switch m.StartMethod {
	case "":
		m.StartMethod = StartFork
	case StartFork, StartSpawn:
	default:
		return m, refused(ManifestName, "start_method %q must be fork or spawn", m.StartMethod)
	}
	if m.ContentType == "" {
		m.ContentType = defaultContentType
	} else if _, _, err := mime.ParseMediaType(m.ContentType); err != nil {
		return m, refused(ManifestName, "content_type %q is not a media type: %v", m.ContentType, err)
	}
	if m.Entry != "" && (!fs.ValidPath(m.Entry) || m.Entry == ".") {
		return m, refused(ManifestName, "entry %q must be a relative path inside the bundle", m.Entry)
	}
	for _, glob := range m.Coefficients {
		if !doublestar.ValidatePattern(glob) {
			return m, refused(ManifestName, "coefficients pattern %q is not a valid glob", glob)
		}
		if path.IsAbs(glob) || path.Clean(glob) != strings.TrimSuffix(glob, "/") || strings.HasPrefix(glob, "..") {
			return m, refused(ManifestName, "coefficients pattern %q must be a relative path inside the bundle", glob)
		}
	}
	return m, nil
}

// yamlReason puts a YAML error on one line, since a refusal is one sentence.
func yamlReason(err error) string {
	var typed *yaml.TypeError
	if errors.As(err, &typed) {
		// The decoder names the Go type, which means nothing to a bundle's author.
		return strings.ReplaceAll(strings.Join(typed.Errors, "; "), " not found in type model.Manifest", " is not one of model.yml's")
	}
	return strings.TrimPrefix(err.Error(), "yaml: ")
}

// withoutLabels returns model.yml's bytes less the lines of its two labels, so that a label alone
// never changes a digest. A label must therefore stand on a line of its own: only then is its
// removal the same for every reader, whatever YAML library it has.
func withoutLabels(raw []byte) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, refused(ManifestName, "%s", yamlReason(err))
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return raw, nil
	}
	top := doc.Content[0]
	drop := map[int]bool{}
	used := map[int]int{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		used[key.Line]++
		if key.Value != "code_version" && key.Value != "coefficients_version" {
			continue
		}
		folded := value.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0
		if top.Style&yaml.FlowStyle != 0 || key.Line != value.Line || folded {
			return nil, refused(ManifestName, "%s must stand on a line of its own", key.Value)
		}
		drop[key.Line] = true
	}
	lines := bytes.SplitAfter(raw, []byte("\n"))
	kept := make([]byte, 0, len(raw))
	for i, line := range lines {
		if !drop[i+1] {
			kept = append(kept, line...)
		}
	}
	return kept, nil
}

// resolve fills the defaults that depend on the bundle's files and checks the rules between them.
func (m *Manifest) resolve(files []File, fallbackName string) error {
	byPath := make(map[string]*File, len(files))
	for i := range files {
		byPath[files[i].Path] = &files[i]
	}
	if err := m.resolveEntry(byPath); err != nil {
		return err
	}
	if m.Name == "" {
		m.Name = fallbackName
	}
	globs := m.Coefficients
	if globs == nil {
		globs = defaultCoefficients
	}
	for _, glob := range globs {
		matched := false
		for i := range files {
			f := &files[i]
			if !doublestar.MatchUnvalidated(glob, f.Path) {
				continue
			}
			if m.Coefficients == nil && (f.Path == m.Entry || f.Path == ManifestName) {
				continue
			}
			if f.Path == m.Entry || f.Path == ManifestName {
				return refused(f.Path, "is matched by the coefficients pattern %q but is code", glob)
			}
			f.Coefficient, matched = true, true
		}
		if !matched && m.Coefficients != nil {
			return refused(ManifestName, "coefficients pattern %q matches no file of the bundle", glob)
		}
	}
	return nil
}

func (m *Manifest) resolveEntry(byPath map[string]*File) error {
	if m.Entry == "" {
		var found []string
		for _, candidate := range []string{"main.py", "main.R"} {
			if byPath[candidate] != nil && (m.Runtime == "" || m.Runtime == runtimeOf[path.Ext(candidate)]) {
				found = append(found, candidate)
			}
		}
		switch len(found) {
		case 1:
			m.Entry = found[0]
		case 0:
			return refused("main.py", "is missing: a bundle needs main.py or main.R at its root%s", nestedEntryHint(byPath))
		default:
			return refused("main.R", "stands beside main.py: a bundle has one entry, or names it with entry: in %s", ManifestName)
		}
	}
	if byPath[m.Entry] == nil {
		return refused(m.Entry, "is named as entry: but is not in the bundle")
	}
	runtime, known := runtimeOf[path.Ext(m.Entry)]
	if !known {
		return refused(m.Entry, "is not an entry: its name must end in .py or .R")
	}
	if m.Runtime == "" {
		m.Runtime = runtime
	}
	if m.Runtime != runtime {
		return refused(m.Entry, "does not fit runtime: %s", m.Runtime)
	}
	return nil
}

// nestedEntryHint names the usual mistake: the folder was zipped instead of what is in it.
func nestedEntryHint(byPath map[string]*File) string {
	for p := range byPath {
		dir, base := path.Split(p)
		if (base == "main.py" || base == "main.R") && strings.Count(dir, "/") == 1 {
			return fmt.Sprintf(" (found %s: pack the content of %s, not the folder)", p, strings.TrimSuffix(dir, "/"))
		}
	}
	return ""
}
