package deployment

import (
	"fmt"
	"slices"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// splitsKept bounds how far back a function can be rolled.
const splitsKept = 10

// Deployed is a version that a function knows, and the deployment that brought it: as that it runs
// whenever it is loaded, so that a rollback leads back to its environment, secrets and limits too.
type Deployed struct {
	Model   string                   `json:"model"`
	Version string                   `json:"version"`
	Spec    types.FunctionDeployment `json:"spec"`

	// Where an engine runs containers: Image is what Spec.Image stood for when it was deployed, and
	// Workload names the containers. Each is "" while nobody has looked, or nothing is loaded.
	Image    string `json:"image,omitempty"`
	Workload string `json:"workload,omitempty"`
	// Contents are the digests that Version had when it was deployed, as one word; "" where nobody knows them.
	Contents string `json:"contents,omitempty"`
	// Bundle is what containers of an Image without a model fetch; nil where the model is in the image.
	Bundle *Bundle `json:"bundle,omitempty"`
}

// Bundle is the pushed bundle of a version, as far as whoever fetches it needs to know it.
type Bundle struct {
	CodeDigest         string `json:"code_digest"`
	CoefficientsDigest string `json:"coefficients_digest"`
	Files              int    `json:"files"`
	Bytes              int64  `json:"bytes"` // of all files, unpacked
	// Packages reports whether it asks for Python packages, which are installed where it runs.
	Packages bool `json:"packages,omitempty"`
}

// Record is all that is kept of a function: from it the function is started again. A stored record
// is never changed; Clone makes the next one.
type Record struct {
	Spec      types.FunctionDeployment `json:"spec"`     // what was deployed last, word for word
	Versions  []Deployed               `json:"versions"` // of Split, of Before and of what Rollout leads back to
	Split     traffic.Split            `json:"traffic"`
	Before    []traffic.Split          `json:"before,omitempty"` // what a rollback leads to, the newest first
	Rollout   *traffic.Rollout         `json:"rollout,omitempty"`
	Note      string                   `json:"rollout_note,omitempty"` // how the last rollout ended
	Replicas  uint64                   `json:"replicas"`
	UID       int                      `json:"uid"` // 0 when the provider is not root
	CreatedAt time.Time                `json:"created_at"`

	// Of records from before there were splits.
	Model   string `json:"model,omitempty"`
	Version string `json:"version,omitempty"`
}

// Upgrade turns a record from before there were splits into one with a split.
func (r *Record) Upgrade() {
	if len(r.Versions) == 0 {
		r.Versions = []Deployed{{Model: r.Model, Version: r.Version, Spec: r.Spec}}
		r.Split = traffic.All(r.Version)
	}
	r.Model, r.Version = "", ""
	r.Before = slices.DeleteFunc(r.Before, func(s traffic.Split) bool {
		return slices.ContainsFunc(s.Versions(), func(v string) bool { return r.Find(v) == nil })
	})
}

// Clone is a copy to make the next record of.
func (r *Record) Clone() *Record {
	next := *r
	next.Versions, next.Before = slices.Clone(r.Versions), slices.Clone(r.Before)
	return &next
}

// Find is the version that the function knows under that name, or nil.
func (r *Record) Find(version string) *Deployed {
	for i := range r.Versions {
		if r.Versions[i].Version == version {
			return &r.Versions[i]
		}
	}
	return nil
}

func (r *Record) drop(version string) {
	r.Versions = slices.DeleteFunc(r.Versions, func(d Deployed) bool { return d.Version == version })
}

// move makes split the one in force, and remembers the one before.
func (r *Record) move(split traffic.Split) {
	if len(r.Split.Targets) > 0 && !split.Equal(r.Split) {
		r.Before = append([]traffic.Split{r.Split}, r.Before...)
		r.Before = r.Before[:min(len(r.Before), splitsKept)]
	}
	r.Split = split
}

// Rollback makes the split before the one in force; it reports whether there was one. During a
// rollout that is the split that the rollout began with.
func (r *Record) Rollback() bool {
	r.Note = ""
	if r.Rollout != nil {
		r.abandon()
		return true
	}
	if len(r.Before) == 0 {
		return false
	}
	r.Split, r.Before = r.Before[0], r.Before[1:]
	return true
}

// SetSplit makes split the one in force, for somebody who moves the calls by hand: a rollout is over.
// Versions that the function does not know yet are what add returns for them.
func (r *Record) SetSplit(split traffic.Split, add func(version string) (Deployed, error)) error {
	r.abandon()
	r.Note = ""
	for _, version := range split.Versions() {
		if r.Find(version) != nil {
			continue
		}
		d, err := add(version)
		if err != nil {
			return err
		}
		r.Versions = append(r.Versions, d)
	}
	r.move(split)
	return nil
}

// EndStep ends the step of the rollout that is in force, as a verdict that is not traffic.Wait says.
// result is what became of it in one word, "rolled_back", "complete" or "step", text in a sentence.
func (r *Record) EndStep(verdict traffic.Verdict, why string) (result, text string) {
	rollout := r.Rollout
	switch last := rollout.Step == len(rollout.Steps)-1; {
	case verdict == traffic.Broken:
		result, text = "rolled_back", "rolled back at "+rollout.Steps[rollout.Step].String()+" %: "+why
		r.abandon()
		r.Note = text
	case last:
		result, text = "complete", "version "+rollout.Version+" has passed every step"
		r.Rollout, r.Note = nil, text
	default:
		step := *rollout
		step.Step++
		result, text = "step", "goes on to "+step.Steps[step.Step].String()+" %"
		r.Rollout, r.Split = &step, step.Split()
	}
	return result, text
}

// Forget is the record without a version of a model, or r itself if it knows none. It refuses with
// backend.ErrInUse while the version is needed.
func (r *Record) Forget(model, version string) (*Record, error) {
	d := r.Find(version)
	switch {
	case d == nil || d.Model != model:
		return r, nil
	case slices.Contains(r.Needs(), version):
		return nil, fmt.Errorf("version %s of %s is %w: it is in the split of function %s", version, model, backend.ErrInUse, r.Ref())
	}
	next := r.Clone()
	next.Before = slices.DeleteFunc(next.Before, func(s traffic.Split) bool { return slices.Contains(s.Versions(), version) })
	return next, nil
}

// abandon takes a rollout back as if it had never begun.
func (r *Record) abandon() {
	if r.Rollout == nil {
		return
	}
	r.Split, r.Rollout = r.Rollout.Base, nil
	if len(r.Before) > 0 && r.Before[0].Equal(r.Split) {
		r.Before = r.Before[1:]
	}
}

// Needs lists the versions that must be loaded: those of the split, and of the split that a rollout
// may lead back to at any moment.
func (r *Record) Needs() []string {
	out := r.Split.Versions()
	if r.Rollout != nil {
		for _, version := range r.Rollout.Base.Versions() {
			if !slices.Contains(out, version) {
				out = append(out, version)
			}
		}
	}
	return out
}

// Keeps lists the versions that stay loaded if they are: those that are needed, and the last warm ones
// of the splits before, so that a rollback finds them ready.
func (r *Record) Keeps(warm int) []string {
	out := r.Needs()
	for _, before := range r.Before {
		for _, t := range before.Targets {
			if warm > 0 && !slices.Contains(out, t.Version) {
				out = append(out, t.Version)
				warm--
			}
		}
	}
	return out
}

// Tidy forgets the versions that no split names any more, and checks that it knows the others.
func (r *Record) Tidy() error {
	named := r.Needs()
	for _, before := range r.Before {
		named = append(named, before.Versions()...)
	}
	r.Versions = slices.DeleteFunc(r.Versions, func(d Deployed) bool { return !slices.Contains(named, d.Version) })
	for _, version := range named {
		if r.Find(version) == nil {
			return fmt.Errorf("function %s: version %s is in a split and not known", r.Ref(), version)
		}
	}
	return nil
}

// Ref is the function that the record is of.
func (r *Record) Ref() backend.Ref {
	return backend.Ref{Namespace: r.Spec.Namespace, Name: r.Spec.Service}
}
