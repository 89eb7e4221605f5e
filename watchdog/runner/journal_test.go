package runner

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/faas-predict/faas-predict/watchdog/wire"
)

func newJournal(t *testing.T) *journalFile {
	t.Helper()
	j, err := newJournalFile()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Close)
	return j
}

func TestAJournalSlotIsFreshForEachWorker(t *testing.T) {
	file := newJournal(t)
	first := file.slot(MaxWorkers - 1)
	first.word(wordClaimed).Store(9)
	first.word(wordCommitted).Store(100)
	first.Revoke(3)
	again := file.slot(MaxWorkers - 1)
	if again.Claimed() != 0 || again.word(wordCommitted).Load() != 0 || again.word(wordRevoked).Load() != math.MaxUint64 {
		t.Error("the slot still holds what its last worker wrote")
	}
	if file.slot(0); again.Claimed() != 0 {
		t.Error("slots overlap")
	}
}

func TestAJournalGivesWholeAnswersOnly(t *testing.T) {
	answer := func(id uint64) []byte {
		return append(wire.AppendHeader(nil, wire.Header{Length: 2, Kind: wire.Response, ID: id}), "ok"...)
	}
	two := append(answer(1), answer(2)...)
	for _, c := range []struct {
		name      string
		area      []byte
		committed uint64
		want      []uint64
	}{
		{"nothing", nil, 0, nil},
		{"two", two, uint64(len(two)), []uint64{1, 2}},
		{"one committed, one under way", two, uint64(len(two) / 2), []uint64{1}},
		{"half of one", two, uint64(len(two)/2 + 10), []uint64{1}},
		{"a length that no runner wrote", two, math.MaxUint64, nil},
		{"a frame that claims too much", binary.LittleEndian.AppendUint32(nil, math.MaxUint32), wire.HeaderSize, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := newJournal(t).slot(3)
			copy(j.mem[slotArea:], c.area)
			j.word(wordCommitted).Store(c.committed)
			var got []uint64
			j.Unwritten(func(h wire.Header, payload []byte) {
				got = append(got, h.ID)
				if string(payload) != "ok" {
					t.Errorf("payload is %q", payload)
				}
			})
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, not %v", got, c.want)
			}
		})
	}
}
