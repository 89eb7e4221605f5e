package deployment

import (
	"fmt"
	"math"
	"regexp"
	"strconv"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// Resources are limits or requests. 0 is none.
type Resources struct {
	Memory int64 // bytes
	CPU    int64 // thousandths of a core
}

// ParseResources reads a deployment's limits or requests; nil has none.
func ParseResources(r *types.FunctionResources) (Resources, error) {
	if r == nil {
		return Resources{}, nil
	}
	memory, err := parseMemory(r.Memory)
	if err != nil {
		return Resources{}, err
	}
	cpu, err := parseCPU(r.CPU)
	return Resources{Memory: memory, CPU: cpu}, err
}

var (
	memoryPattern = regexp.MustCompile(`^([0-9]{1,18})(\.[0-9]{1,3})?(k|M|G|T|Ki|Mi|Gi|Ti)?$`)
	cpuPattern    = regexp.MustCompile(`^([0-9]{1,6}(\.[0-9]{1,3})?|[0-9]{1,9}m)$`)

	memoryUnit = map[string]float64{
		"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
	}
)

// leastMemory is what a Python worker and its watchdog cannot go below.
const leastMemory = 16 << 20

// parseMemory reads a Kubernetes memory quantity such as 128Mi as bytes. "" is 0: no limit.
func parseMemory(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	m := memoryPattern.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("%w memory quantity %.40q: want a number of bytes with k, M, G, T, Ki, Mi, Gi, Ti or nothing behind it, such as 128Mi", backend.ErrInvalid, s)
	}
	n, err := strconv.ParseFloat(m[1]+m[2], 64)
	if err != nil {
		return 0, fmt.Errorf("%w memory quantity %.40q: %w", backend.ErrInvalid, s, err)
	}
	n *= memoryUnit[m[3]]
	if n < leastMemory || n > math.MaxInt64/2 {
		return 0, fmt.Errorf("%w memory quantity %.40q: want 16Mi or more", backend.ErrInvalid, s)
	}
	return int64(n), nil
}

// leastCPU is the smallest share that the kernel's scheduler enforces well.
const leastCPU = 10

// parseCPU reads a Kubernetes CPU quantity such as 100m or 1.5 as thousandths of a core. "" is 0: no
// limit.
func parseCPU(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if !cpuPattern.MatchString(s) {
		return 0, fmt.Errorf("%w cpu quantity %.40q: want a number of cores, such as 0.5 or 500m", backend.ErrInvalid, s)
	}
	scale := 1000.0
	if s[len(s)-1] == 'm' {
		scale, s = 1, s[:len(s)-1]
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, fmt.Errorf("%w cpu quantity %.40q: %w", backend.ErrInvalid, s, err)
	}
	milli := int64(math.Round(n * scale))
	if milli < leastCPU {
		return 0, fmt.Errorf("%w cpu quantity %.40q: want 10m or more", backend.ErrInvalid, s)
	}
	return milli, nil
}
