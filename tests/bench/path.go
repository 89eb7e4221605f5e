package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// route is a way to iris and the processes on it.
type route struct {
	what, url, script string
	pid               int               // the processes are this one and those below it
	metrics           map[string]string // by program, where it tells what it allocates
}

// path prints what a request costs each program on its way: processor time, system calls that read or
// write, and allocations.
func (b *bench) path() error {
	iris, err := filepath.Abs("examples/iris")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bare, err := b.start("http://127.0.0.1:29700/", []string{"BENCH_ECHO=127.0.0.1:29700"}, self)
	if err != nil {
		return err
	}
	watchdog, err := b.watchdog(29710, iris, 2)
	if err != nil {
		return err
	}
	protected, err := b.protectedIris(29730)
	if err != nil {
		return err
	}
	provider := map[string]string{"faas-predict": protected.gateway + "/metrics"}
	routes := []route{
		{"bare net/http echo", "http://127.0.0.1:29700/", posting(request), bare.Process.Pid, nil},
		{"fwatchdog", "http://127.0.0.1:29710/", posting(request), watchdog.Process.Pid, map[string]string{"fwatchdog": "http://127.0.0.1:29711/metrics"}},
		{"through the provider", protected.gateway + "/function/iris", posting(request), protected.provider.Process.Pid, provider},
		{"through the provider, with a token", protected.gateway + "/function/iris-protected", bearing(protected.token), protected.provider.Process.Pid, provider},
	}
	rates := make([][]float64, len(routes))
	costs := make([]map[string][][4]float64, len(routes)) // by program, of each round
	for range rounds {
		for i, r := range routes {
			before := r.spent()
			rate, err := b.wrk(r.script, r.url)
			if err != nil {
				return err
			}
			calls := rate * loadSeconds
			for program, now := range r.spent() {
				var per [4]float64
				for k := range per {
					per[k] = (now[k] - before[program][k]) / calls
				}
				if costs[i] == nil {
					costs[i] = map[string][][4]float64{}
				}
				costs[i][program] = append(costs[i][program], per)
			}
			rates[i] = append(rates[i], rate)
		}
	}
	ratio("requests/s, iris through fwatchdog, against a bare Go net/http echo", rates[1], rates[0], 0.75)
	ratio("requests/s, through the provider with a token, against the bare echo", rates[3], rates[0], 0.5)
	ratio("requests/s, through the provider, against direct", rates[2], rates[1], 0.55)
	for i, r := range routes {
		fmt.Printf("%s\n", r.what)
		for _, program := range []string{filepath.Base(self), "faas-predict", "fwatchdog", "python3"} {
			rounds := costs[i][program]
			if len(rounds) == 0 {
				continue
			}
			of := func(k int) float64 {
				var all []float64
				for _, c := range rounds {
					all = append(all, c[k])
				}
				return median(all)
			}
			if of(0) < 0.1 {
				continue
			}
			allocations := "            "
			if r.metrics[program] != "" {
				allocations = fmt.Sprintf("%5.1f allocs", of(3))
			}
			fmt.Printf("  %-20s %6.1f us %7.2f reads %7.2f writes %s\n", program, of(0), of(1), of(2), allocations)
		}
	}
	return nil
}

var mallocs = regexp.MustCompile(`(?m)^go_memstats_mallocs_total (\S+)`)

// spent is what each program on the route has spent so far: microseconds of processor time, reads,
// writes, allocations.
func (r route) spent() map[string][4]float64 {
	all := map[string][4]float64{}
	for _, pid := range descendants(r.pid) {
		dir := "/proc/" + strconv.Itoa(pid)
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		name := string(stat[bytes.IndexByte(stat, '(')+1 : bytes.LastIndexByte(stat, ')')])
		if strings.HasPrefix(name, "python3") {
			name = "python3"
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		spent := all[name]
		for _, field := range []int{11, 12} { // ticks of 10 ms in user and in kernel mode
			ticks, _ := strconv.ParseFloat(fields[field], 64)
			spent[0] += 10_000 * ticks
		}
		io, _ := os.ReadFile(dir + "/io")
		for line := range strings.Lines(string(io)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if k := slices.Index([]string{"syscr", "syscw"}, key); k >= 0 {
				n, _ := strconv.ParseFloat(value, 64)
				spent[1+k] += n
			}
		}
		all[name] = spent
	}
	for program, url := range r.metrics {
		spent := all[program]
		spent[3] = allocated(url)
		all[program] = spent
	}
	return all
}

func allocated(url string) float64 {
	resp, err := http.Get(url)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	found := mallocs.FindSubmatch(text)
	if found == nil {
		return 0
	}
	n, _ := strconv.ParseFloat(string(found[1]), 64)
	return n
}
