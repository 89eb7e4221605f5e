package server

import (
	"testing"
	"testing/synctest"
)

func rowsOf(sizes ...int) (run []row) {
	for _, n := range sizes {
		run = append(run, row{request: make([]byte, n)})
	}
	return run
}

func TestRowsWaitUntilEnoughAreAnswered(t *testing.T) {
	for _, c := range []struct {
		name   string
		before []row
		run    []row
		leaves int // rows of before that leave until there is room
	}{
		{"room at once", rowsOf(1, 1), rowsOf(1, 1), 0},
		{"too many rows", rowsOf(1, 1, 1), rowsOf(1, 1), 1},
		{"a run of more than may be is alone", rowsOf(1, 1, 1), rowsOf(1, 1, 1, 1, 1), 3},
		{"too many bytes", rowsOf(bytesAhead/2, bytesAhead/2), rowsOf(bytesAhead / 2), 1},
		{"a row of more bytes than may be is alone", rowsOf(1, 1), rowsOf(2 * bytesAhead), 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newRowsAhead()
				if !a.enter(c.before, 4) {
					t.Fatal("the stream is over")
				}
				entered := false
				go func() { entered = a.enter(c.run, 4) }()
				for n := range c.leaves {
					if synctest.Wait(); entered {
						t.Fatalf("it entered when %d rows had left", n)
					}
					a.leave(c.before[n])
				}
				if synctest.Wait(); !entered {
					t.Fatal("it did not enter")
				}
				for _, r := range append(c.before[c.leaves:], c.run...) {
					a.leave(r)
				}
				if a.rows != 0 || a.bytes != 0 {
					t.Errorf("%d rows, %d bytes are left", a.rows, a.bytes)
				}
			})
		})
	}
}

func TestAStreamThatIsOverLetsNothingWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newRowsAhead()
		a.enter(rowsOf(1), 1)
		entered := make(chan bool, 1)
		go func() { entered <- a.enter(rowsOf(1), 1) }()
		synctest.Wait()
		a.close()
		if <-entered || a.enter(rowsOf(1), 1) {
			t.Error("rows entered a stream that is over")
		}
	})
}
