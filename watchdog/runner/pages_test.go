package runner

import (
	"slices"
	"testing"
)

func TestHugePagesAreAskedForUnlessTheEnvironmentDecides(t *testing.T) {
	for _, c := range []struct{ in, want []string }{
		{nil, []string{"GLIBC_TUNABLES=glibc.malloc.hugetlb=1"}},
		{[]string{"A=b", "GLIBC_TUNABLES="}, []string{"A=b", "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"}},
		{[]string{"GLIBC_TUNABLES=glibc.malloc.check=3", "A=b"}, []string{"A=b", "GLIBC_TUNABLES=glibc.malloc.check=3:glibc.malloc.hugetlb=1"}},
		{[]string{"GLIBC_TUNABLES=glibc.malloc.hugetlb=0"}, []string{"GLIBC_TUNABLES=glibc.malloc.hugetlb=0"}},
	} {
		if got := withHugePages(c.in); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.in, got, c.want)
		}
	}
}
