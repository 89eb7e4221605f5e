package process

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// meter measures a process and everything below it.
type meter struct {
	mu   sync.Mutex
	cpu  time.Duration // at the last measurement
	at   time.Time
	from time.Time // when the process started
}

// clockTick is the unit of CPU times in /proc, which Linux fixes at 1/100 s for user space.
const clockTick = 10 * time.Millisecond

// read returns CPU as thousandths of a core since the last call (the first time: since the start)
// and memory as the proportional set size: pages that workers share count once.
func (m *meter) read(pid int) *types.FunctionUsage {
	m.mu.Lock()
	defer m.mu.Unlock()
	var cpu time.Duration
	var memory int64
	for _, pid := range tree(pid) {
		cpu += cpuTime(pid)
		memory += proportionalSize(pid)
	}
	now := time.Now()
	since := m.at
	if since.IsZero() {
		since = m.from
	}
	u := &types.FunctionUsage{TotalMemoryBytes: float64(memory)}
	// A worker that ended takes its time with it, so the sum may go down.
	if elapsed := now.Sub(since); elapsed > 0 && cpu > m.cpu {
		u.CPU = float64(cpu-m.cpu) / float64(elapsed) * 1000
	}
	m.cpu, m.at = cpu, now
	return u
}

// tree lists the process and its descendants.
func tree(root int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if f := statFields(pid); len(f) > 1 {
			parent, _ := strconv.Atoi(f[1])
			children[parent] = append(children[parent], pid)
		}
	}
	out := []int{root}
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i]]...)
	}
	return out
}

// statFields are the fields of /proc/PID/stat behind the program's name, which may hold anything.
func statFields(pid int) []string {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil
	}
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return nil
	}
	return strings.Fields(string(raw[end+1:]))
}

func cpuTime(pid int) time.Duration {
	f := statFields(pid)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * clockTick
}

func proportionalSize(pid int) int64 {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err == nil {
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == "Pss:" {
				kb, _ := strconv.ParseInt(f[1], 10, 64)
				return kb << 10
			}
		}
	}
	if f := statFields(pid); len(f) > 21 {
		pages, _ := strconv.ParseInt(f[21], 10, 64)
		return pages * int64(os.Getpagesize())
	}
	return 0
}
