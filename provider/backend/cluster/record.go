package cluster

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// record is what the engine keeps of a function. A stored one is never changed.
type record struct {
	deployment.Record
	// Serial grows with every change, also from a function to the next of its name: what comes late with a
	// smaller one is older.
	Serial int64 `json:"serial"`
	// Retired are workloads that the function no longer uses and that any provider may remove.
	Retired []string `json:"retired,omitempty"`
}

func decode(raw []byte) (*record, error) {
	if raw == nil {
		return nil, nil
	}
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("read a function's record: %w", err)
	}
	return &r, nil
}

func (r *record) encode() ([]byte, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("store a function's record: %w", err)
	}
	if len(raw) > MaxRecord {
		return nil, fmt.Errorf("%w function %s: what is kept of it and of its versions takes %d bytes, %d are allowed; its environment or annotations are too large", backend.ErrInvalid, r.Ref(), len(raw), MaxRecord)
	}
	return raw, nil
}

func (r *record) clone() *record {
	next := *r
	next.Record = *r.Clone()
	return &next
}

// workloads are the IDs that the record refers to.
func (r *record) workloads() []string {
	var out []string
	if r != nil {
		for _, d := range r.Versions {
			if d.Workload != "" {
				out = append(out, d.Workload)
			}
		}
	}
	return out
}

// settle completes a record that is to follow old, of which seen is what the engine has: versions that
// are not kept loaded lose their workloads, and workloads that lost their version are retired.
func (r *record) settle(old *record, warm int, seen []Status) error {
	if err := r.Tidy(); err != nil {
		return err
	}
	keeps := r.Keeps(warm)
	for i := range r.Versions {
		if d := &r.Versions[i]; r.Replicas == 0 || !slices.Contains(keeps, d.Version) {
			d.Workload = ""
		}
	}
	used := r.workloads()
	was := old.workloads()
	r.Serial = time.Now().UnixNano()
	if old != nil {
		was = append(was, old.Retired...)
		r.Serial = max(r.Serial, old.Serial+1)
	}
	r.Retired = nil
	for _, s := range seen {
		if slices.Contains(was, s.ID) && !slices.Contains(used, s.ID) {
			r.Retired = append(r.Retired, s.ID)
		}
	}
	return nil
}
