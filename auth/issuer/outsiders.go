package issuer

import (
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/faas-predict/faas-predict/auth/reload"
)

// outsiders are the trusted issuers at work. Its zero value trusts nobody.
type outsiders struct {
	mu     sync.RWMutex
	closed bool
	by     map[string]*outside // by issuer
}

// get returns nil for an issuer that is not trusted.
func (o *outsiders) get(issuer string) *outside {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.by[issuer]
}

func (o *outsiders) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for _, one := range o.by {
		one.close()
	}
	o.by = nil
}

// SetTrust replaces the outside issuers whose tokens may be exchanged, all or, with an error, none. One that
// stays as it was keeps its keys; a new one can be used once its keys have been fetched. Tokens that were
// issued before hold on. It must not be called on an Issuer that is Idle.
func (i *Issuer) SetTrust(all []Trust) error {
	o := &i.outside
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return errors.New("the issuer is closed")
	}
	next := make(map[string]*outside, len(all))
	fail := func(err error) error {
		for issuer, one := range next {
			if o.by[issuer] != one {
				one.close()
			}
		}
		return err
	}
	for _, t := range all {
		if err := t.complete(i.cfg.URL); err != nil {
			return fail(err)
		}
		if t.Issuer == i.cfg.URL || next[t.Issuer] != nil {
			return fail(fmt.Errorf("trusted issuer %s: it is named twice, or is this issuer itself", t.Issuer))
		}
		if same := o.by[t.Issuer]; same != nil && reflect.DeepEqual(same.Trust, t) {
			next[t.Issuer] = same
			continue
		}
		one, err := newOutside(t, i.cfg)
		if err != nil {
			return fail(err)
		}
		next[t.Issuer] = one
	}
	for issuer, one := range o.by {
		if next[issuer] != one {
			one.close()
		}
	}
	o.by = next
	return nil
}

// FollowTrust sets what a file says, now and whenever it changes, until stop is called, which must come
// before Close. An error is about the file as it is now; later ones are logged, and leave what held before.
func (i *Issuer) FollowTrust(file string) (stop func(), err error) {
	watch, err := reload.Start([]string{file}, i.log, func(contents [][]byte) error {
		all, err := ParseTrust(contents[0])
		if err == nil {
			err = i.SetTrust(all)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("trust_file: %w", err)
	}
	return watch.Close, nil
}
