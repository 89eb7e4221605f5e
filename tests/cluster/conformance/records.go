package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// Records holds an engine to what several providers at once rely on: a record changes only from what its
// writer has read.
func Records(t *testing.T, engine cluster.Records) {
	ctx := t.Context()
	ref := backend.Ref{Namespace: backend.DefaultNamespace, Name: "records"}
	read := func() cluster.Function {
		t.Helper()
		f, err := engine.Read(ctx, ref)
		must(t, err)
		return f
	}
	conflict := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, cluster.ErrConflict) {
			t.Errorf("%s: %v, want a conflict", what, err)
		}
	}
	if f := read(); f.Record != nil || len(f.Workloads) > 0 {
		t.Fatalf("there is something already: %+v", f)
	}
	conflict("replacing what is not there", engine.Write(ctx, ref, []byte("{}"), "1"))
	conflict("erasing what is not there", engine.Erase(ctx, ref, "1"))
	must(t, engine.Write(ctx, ref, []byte(`{"n":0}`), ""))
	conflict("creating what is there", engine.Write(ctx, ref, []byte("{}"), ""))
	first := read()
	if string(first.Record) != `{"n":0}` || first.Ref != ref {
		t.Errorf("read %s of %s", first.Record, first.Ref)
	}
	must(t, engine.Write(ctx, ref, []byte(`{"n":1}`), first.Revision))
	conflict("writing on what was read before", engine.Write(ctx, ref, []byte("{}"), first.Revision))
	conflict("erasing what was read before", engine.Erase(ctx, ref, first.Revision))

	// Of those that write at once, every one that is told so has written, and no other.
	const writers, each = 4, 5
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for done := 0; done < each; {
				f, err := engine.Read(ctx, ref)
				if err != nil {
					t.Error(err)
					return
				}
				var n int
				if _, err := fmt.Sscanf(string(f.Record), `{"n":%d}`, &n); err != nil {
					t.Errorf("%s: %v", f.Record, err)
					return
				}
				err = engine.Write(ctx, ref, fmt.Appendf(nil, `{"n":%d}`, n+1), f.Revision)
				switch {
				case err == nil:
					done++
				case !errors.Is(err, cluster.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if want := fmt.Sprintf(`{"n":%d}`, 1+writers*each); string(read().Record) != want {
		t.Errorf("after %d writes the record is %s", 1+writers*each, read().Record)
	}

	large := append(append([]byte(`{"s":"`), bytes.Repeat([]byte("x"), cluster.MaxRecord-8)...), `"}`...)
	must(t, engine.Write(ctx, ref, large, read().Revision))
	if last := read(); !bytes.Equal(last.Record, large) {
		t.Errorf("of a record of %d bytes, %d came back", len(large), len(last.Record))
	}
	must(t, engine.Erase(ctx, ref, read().Revision))
	if f := read(); f.Record != nil {
		t.Errorf("erased, it is %s", f.Record)
	}

	// Of those that create at once, one does.
	made := make(chan error, writers)
	for range writers {
		go func() { made <- engine.Write(context.WithoutCancel(ctx), ref, []byte("{}"), "") }()
	}
	created := 0
	for range writers {
		if err := <-made; err == nil {
			created++
		} else if !errors.Is(err, cluster.ErrConflict) {
			t.Error(err)
		}
	}
	if created != 1 {
		t.Errorf("%d of %d have created it", created, writers)
	}
	must(t, engine.Erase(ctx, ref, read().Revision))
}
