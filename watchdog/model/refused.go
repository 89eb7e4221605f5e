package model

import (
	"errors"
	"fmt"
)

// ErrTooLarge is what errors.Is finds in a refusal for size: too many files, too many bytes, or a
// compression ratio that only a bomb has.
var ErrTooLarge = errors.New("bundle too large")

// RefusedError says which file of a bundle breaks which rule. Its text is one sentence for the
// bundle's author; it holds no path of the machine that read it.
type RefusedError struct {
	File string // path inside the bundle, or "" when the bundle as a whole is meant
	Rule string
	Err  error // ErrTooLarge or nil
}

func (e *RefusedError) Error() string {
	if e.File == "" {
		return "bundle " + e.Rule
	}
	return e.File + " " + e.Rule
}

func (e *RefusedError) Unwrap() error { return e.Err }

func refused(file, format string, args ...any) *RefusedError {
	return &RefusedError{File: file, Rule: fmt.Sprintf(format, args...)}
}

func tooLarge(file, format string, args ...any) *RefusedError {
	return &RefusedError{File: file, Rule: fmt.Sprintf(format, args...), Err: ErrTooLarge}
}
