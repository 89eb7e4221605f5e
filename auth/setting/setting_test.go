package setting

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

type config struct {
	port int
	name string
}

var table = []Setting[config]{
	{"listen_port", "80", "Port.", func(c *config, v string) (err error) { c.port, err = Integer(v, 0, 100); return err }},
	{"name", "", "Name.", func(c *config, v string) error { return OneOf(&c.name, v, "", "a", "b") }},
}

func TestFlagsWinOverTheEnvironmentAndThatOverDefaults(t *testing.T) {
	read := func(args ...string) (c config, err error) {
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		Flags(table, flags)
		if err := flags.Parse(args); err != nil {
			t.Fatal(err)
		}
		return c, Read(table, &c, Lookup(flags))
	}
	t.Setenv("listen_port", "")
	if c, err := read(); err != nil || c != (config{80, ""}) {
		t.Errorf("%+v %v", c, err)
	}
	t.Setenv("listen_port", "81")
	if c, err := read("--name", "a"); err != nil || c != (config{81, "a"}) {
		t.Errorf("%+v %v", c, err)
	}
	if c, err := read("--listen-port=82"); err != nil || c != (config{82, ""}) {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := read("--listen-port", "101"); err == nil || err.Error() != `setting listen_port is "101", want a whole number from 0 to 100` {
		t.Error(err)
	}
	if _, err := read("--name", "c"); err == nil || !strings.Contains(err.Error(), `setting name is "c", want one of`) {
		t.Error(err)
	}
}

func TestDurations(t *testing.T) {
	for v, want := range map[string]time.Duration{"90": 90 * time.Second, "0": 0, "1m30s": 90 * time.Second, "5ms": 5 * time.Millisecond} {
		if d, err := Duration(v); err != nil || d != want {
			t.Errorf("%q: %s %v", v, d, err)
		}
	}
	for _, v := range []string{"", "-1", "-1s", "1 m", "soon", "99999999999999"} {
		if d, err := Duration(v); err == nil {
			t.Errorf("%q: %s", v, d)
		}
	}
	for v, says := range map[string]string{"1s": "want from 2s to 4s", "5s": "want from 2s to 4s"} {
		if _, err := DurationWithin(v, 2*time.Second, 4*time.Second); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", v, err)
		}
	}
	if _, err := DurationWithin("1s", 2*time.Second, Forever); err == nil || !strings.Contains(err.Error(), "want 2s or more") {
		t.Error(err)
	}
}

func TestNetworks(t *testing.T) {
	got, err := Prefixes(" 10.1.2.3/8, ,192.0.2.7,2001:db8::/32 ")
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/32")}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if _, err := Prefixes("10.0.0.0/8,nowhere"); err == nil || !strings.Contains(err.Error(), `has "nowhere"`) {
		t.Error(err)
	}
}
