package deployment

import "testing"

func TestQuantities(t *testing.T) {
	for in, want := range map[string]int64{"": 0, "128Mi": 128 << 20, "1.5Gi": 3 << 29, "64M": 64e6, "33554432": 32 << 20} {
		if got, err := parseMemory(in); err != nil || got != want {
			t.Errorf("parseMemory(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for in, want := range map[string]int64{"": 0, "100m": 100, "1": 1000, "0.5": 500, "2.25": 2250} {
		if got, err := parseCPU(in); err != nil || got != want {
			t.Errorf("parseCPU(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"1", "abc", "128mi", "128 Mi", "-1Gi", "1e9", "99999999999Ti", "Mi", "٣Gi"} {
		if got, err := parseMemory(in); err == nil {
			t.Errorf("parseMemory(%q) = %d", in, got)
		}
	}
	for _, in := range []string{"1m", "abc", "0.5m", "-1", "1e3", "inf", "0"} {
		if got, err := parseCPU(in); err == nil {
			t.Errorf("parseCPU(%q) = %d", in, got)
		}
	}
}

func FuzzQuantities(f *testing.F) {
	f.Add("128Mi")
	f.Add("100m")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseMemory(s); err == nil && s != "" && n < leastMemory {
			t.Errorf("parseMemory(%q) = %d", s, n)
		}
		if n, err := parseCPU(s); err == nil && s != "" && n < leastCPU {
			t.Errorf("parseCPU(%q) = %d", s, n)
		}
	})
}
