// Package setting reads a program's settings from environment variables and flags by one table, from which
// help and documentation come too, and has the rules that settings of several programs share.
//
// Errors of rules go on from the setting's name: "is "x", want true or false". Nothing here opens a file or a
// socket.
package setting

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Setting is one row of a table for a configuration C. A package that has such a table defines a type of its own
// with this one's fields, which all functions here take for it.
type Setting[C any] struct {
	Name    string // environment variable; the flag is the same with - for _
	Default string // as a person would write it; "" means off or derived, see Doc
	Doc     string // one or two sentences: meaning and unit
	Apply   func(c *C, value string) error
}

type row[C any] interface {
	~struct {
		Name    string
		Default string
		Doc     string
		Apply   func(c *C, value string) error
	}
}

// Flag is a setting's name on the command line.
func Flag(name string) string { return strings.ReplaceAll(name, "_", "-") }

// Read applies every setting of a table to c; lookup gives "" for one that is not given. The error names the
// setting and the rule.
func Read[R row[C], C any](table []R, c *C, lookup func(name string) string) error {
	for _, r := range table {
		s := Setting[C](r)
		value := lookup(s.Name)
		if value == "" {
			value = s.Default
		}
		if err := s.Apply(c, value); err != nil {
			return fmt.Errorf("setting %s %w", s.Name, err)
		}
	}
	return nil
}

// Flags adds a flag for every setting of a table.
func Flags[R row[C], C any](table []R, flags *pflag.FlagSet) {
	for _, r := range table {
		s := Setting[C](r)
		flags.String(Flag(s.Name), "", fmt.Sprintf("%s (env %s, default %q)", s.Doc, s.Name, s.Default))
	}
}

// Lookup is for Read: a flag's value where it is given, else the environment's.
func Lookup(flags *pflag.FlagSet) func(name string) string {
	return func(name string) string {
		if flag := flags.Lookup(Flag(name)); flag != nil && flag.Changed {
			return flag.Value.String()
		}
		return os.Getenv(name)
	}
}

// Integer is a whole number within limits.
func Integer(v string, least, most int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("is %q, want a whole number from %d to %d", v, least, most)
	}
	return n, nil
}

// Boolean is true or false.
func Boolean(v string) (bool, error) {
	if v != "true" && v != "false" {
		return false, fmt.Errorf("is %q, want true or false", v)
	}
	return v == "true", nil
}

// Duration is what OpenFaaS programs take: a Go duration, or a whole number of seconds.
func Duration(v string) (time.Duration, error) {
	if seconds, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("is %q, want a duration such as 90s or a number of seconds", v)
	}
	return d, nil
}

// Forever is as good as that.
const Forever = 100 * 365 * 24 * time.Hour

// DurationWithin is a Duration within limits; most may be Forever.
func DurationWithin(v string, least, most time.Duration) (time.Duration, error) {
	d, err := Duration(v)
	if err == nil && (d < least || d > most) {
		if most == Forever {
			return 0, fmt.Errorf("is %q, want %s or more", v, least)
		}
		return 0, fmt.Errorf("is %q, want from %s to %s", v, least, most)
	}
	return d, err
}

// OneOf sets field to v if that is allowed.
func OneOf(field *string, v string, allowed ...string) error {
	if !slices.Contains(allowed, v) {
		return fmt.Errorf("is %q, want one of %s", v, strings.Join(allowed, ", "))
	}
	*field = v
	return nil
}

// List is what stands between commas, without what is empty.
func List(v string) (all []string) {
	for one := range strings.SplitSeq(v, ",") {
		if one = strings.TrimSpace(one); one != "" {
			all = append(all, one)
		}
	}
	return all
}

// Prefixes is a List of networks; an address is one by itself.
func Prefixes(v string) (all []netip.Prefix, err error) {
	for _, one := range List(v) {
		prefix, err := netip.ParsePrefix(one)
		if err != nil {
			address, err := netip.ParseAddr(one)
			if err != nil {
				return nil, fmt.Errorf("has %q, want an address or a network such as 10.0.0.0/8", one)
			}
			prefix = netip.PrefixFrom(address, address.BitLen())
		}
		all = append(all, prefix.Masked())
	}
	return all, nil
}

// StateDir is where a program keeps its state: by the file system hierarchy for root, and by the XDG base
// directories for others.
func StateDir(program string) string {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib", program)
	}
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, program)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return program + "-data"
	}
	return filepath.Join(home, ".local", "state", program)
}
