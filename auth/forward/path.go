package forward

import (
	"path"
	"strings"
)

// kind is what a path leads to.
type kind int

const (
	other kind = iota
	function
	system
)

// destination is what a provider takes a path for.
type destination struct {
	kind            kind
	namespace, name string // of a function
}

var functionPrefixes = []string{"/function/", "/async-function/"}

const systemPath = "/system"

// maxDecoded is how often a path may be percent-encoded. Each time costs a pass over it.
const maxDecoded = 4

// resolve says what a path leads to. Gateway and provider need not read a path alike: one may decode
// it, merge slashes or follow dots where the other does not. So only what all of them read alike is
// decided upon, and all else is refused. What follows a function's name is the function's own matter,
// and may contain anything but a way out.
func resolve(escaped, namespace string) (destination, error) {
	if !strings.HasPrefix(escaped, "/") {
		return destination{}, unclear("the original path must begin with a slash")
	}
	for i := range len(escaped) {
		if c := escaped[i]; c <= ' ' || c > '~' || c == '\\' || c == '#' {
			return destination{}, unclear("the original path must consist of printable ASCII without spaces, \\ and #")
		}
		if escaped[i] == '%' && (i+2 >= len(escaped) || !isHex(escaped[i+1]) || !isHex(escaped[i+2])) {
			return destination{}, unclear("the original path has a % that is not followed by two hexadecimal digits")
		}
	}
	// Decoded as often as the gateways on the way might: %252e is %2e to one and a dot to two.
	decoded := escaped
	for times := 0; ; times++ {
		if climbs(decoded) {
			return destination{}, unclear("the original path must not have segments . and .., however they are spelled")
		}
		next := decode(decoded)
		if next == decoded {
			break
		}
		if times == maxDecoded {
			return destination{}, unclear("the original path is percent-encoded over and over")
		}
		decoded = next
	}
	for _, prefix := range functionPrefixes {
		if rest, found := strings.CutPrefix(escaped, prefix); found {
			called, _, _ := strings.Cut(rest, "/")
			return functionNamed(called, namespace)
		}
	}
	if below(escaped, systemPath) {
		return destination{kind: system}, nil
	}
	cleaned := strings.ToLower(path.Clean(strings.ReplaceAll(decoded, `\`, "/")))
	if below(cleaned, "/function") || below(cleaned, "/async-function") || below(cleaned, systemPath) {
		return destination{}, unclear("the original path must not spell /function, /async-function or /system in another way")
	}
	return destination{kind: other}, nil
}

// functionNamed reads NAME or NAME.NAMESPACE as the provider does.
func functionNamed(called, namespace string) (destination, error) {
	name, suffix, qualified := strings.Cut(called, ".")
	if qualified {
		namespace = suffix
	}
	if !isLabel(name) || !isLabel(namespace) {
		return destination{}, unclear("after /function/ there must be NAME or NAME.NAMESPACE, each 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends")
	}
	return destination{function, namespace, name}, nil
}

// isLabel reports whether s is a DNS label (RFC 1123), which is what providers accept as a name.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// below reports whether p is base or a path below it.
func below(p, base string) bool {
	rest, found := strings.CutPrefix(p, base)
	return found && (rest == "" || rest[0] == '/')
}

// literal reports whether a path is in its one form: nothing decoded, merged or followed changes it.
func literal(p string) bool {
	return !strings.Contains(p, "%") && (path.Clean(p) == p || path.Clean(p)+"/" == p)
}

// climbs reports whether a path has a dot segment, also one with a parameter (..;a=b), and also if
// backslashes count as slashes.
func climbs(p string) bool {
	for segment := range strings.FieldsFuncSeq(p, func(r rune) bool { return r == '/' || r == '\\' }) {
		segment, _, _ = strings.Cut(segment, ";")
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

// decode replaces what is percent-encoded, once, and leaves a % that begins nothing.
func decode(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]) {
			b.WriteByte(unhex(s[i+1])<<4 | unhex(s[i+2]))
			i += 2
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}
