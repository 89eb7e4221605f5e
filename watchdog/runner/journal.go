package runner

import (
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faas-predict/faas-predict/watchdog/wire"
)

// The journal is memory that the watchdog shares with its workers, a slot each. A worker notes in it
// which request it is at and puts its answers there before it writes them, so that when it dies, or
// gets stuck, the watchdog knows exactly what was answered, what had begun and what had not.
const (
	slotBytes = 128 << 10
	slotArea  = 64 // offset of the answers; the words stand before it

	wordGeneration = 0 // counts up when the answers were written to the channel and the area is free
	wordCommitted  = 1 // bytes of whole answers in the area
	wordClaimed    = 2 // id of the request being answered
	wordRevoked    = 3 // the worker begins no request with this id or a later one
)

const nothingRevoked = math.MaxUint64

type journalFile struct {
	file *os.File
	mem  []byte
}

func newJournalFile() (*journalFile, error) {
	fd, err := unix.MemfdCreate("fwatchdog-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the journal: %w", err)
	}
	file := os.NewFile(uintptr(fd), "journal")
	if err := file.Truncate(MaxWorkers * slotBytes); err != nil {
		file.Close()
		return nil, fmt.Errorf("make the journal: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, MaxWorkers*slotBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("map the journal: %w", err)
	}
	return &journalFile{file: file, mem: mem}, nil
}

// Close releases the file; the mapping stays, because a worker's last reader may still look at it.
func (j *journalFile) Close() { j.file.Close() }

func (j *journalFile) slot(n int) *Journal {
	mem := j.mem[n*slotBytes : (n+1)*slotBytes]
	clear(mem[:slotArea])
	s := &Journal{mem: mem}
	s.word(wordRevoked).Store(nothingRevoked)
	return s
}

// Journal is one worker's slot.
type Journal struct{ mem []byte }

func (j *Journal) word(n int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&j.mem[n*8]))
}

// Claimed is the id of the request that the worker began last; 0 before the first.
func (j *Journal) Claimed() uint64 { return j.word(wordClaimed).Load() }

// Revoke tells the worker to begin no request with id from or a later one. A request that it does
// not claim after that comes back Skipped.
func (j *Journal) Revoke(from uint64) { j.word(wordRevoked).Store(from) }

// Restore lifts Revoke.
func (j *Journal) Restore() { j.word(wordRevoked).Store(nothingRevoked) }

// Unwritten calls reply for each answer that is in the journal and may not have been written to the
// channel. It may be called while the worker runs: answers that the worker was just writing are left
// out, and come by the channel. The payload is the callee's.
func (j *Journal) Unwritten(reply func(h wire.Header, payload []byte)) {
	generation := j.word(wordGeneration).Load()
	committed := j.word(wordCommitted).Load()
	if committed == 0 || committed > slotBytes-slotArea {
		return
	}
	answers := make([]byte, committed)
	copy(answers, j.mem[slotArea:])
	if j.word(wordGeneration).Load() != generation {
		return
	}
	for {
		h, payload, rest, _, ok, err := wire.Next(answers)
		if err != nil || !ok {
			return
		}
		reply(h, payload)
		answers = rest
	}
}
