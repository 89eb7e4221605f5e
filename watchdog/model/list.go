package model

import (
	"path"
	"regexp"
	"sort"
)

var sha256Pattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ValidSHA256 reports whether s is a SHA-256 as File has it: 64 lower-case hex digits.
func ValidSHA256(s string) bool { return sha256Pattern.MatchString(s) }

// CheckList holds a list of files to the rules that Extract holds a zip to, before any of them is
// made: a path that leaves the bundle, a path twice, a file below another file, and more than limits
// allow are refused with a *RefusedError. It returns the files that are part of a bundle, sorted by
// path; by-products of running and editing are left out, as they are when a zip is unpacked.
//
// A list only claims its sizes. Who puts the files together must see that they are true.
func CheckList(files []File, limits Limits) ([]File, error) {
	if len(files) > limits.MaxFiles {
		return nil, tooLarge("", "has %d entries; %d are allowed", len(files), limits.MaxFiles)
	}
	kept := make([]File, 0, len(files))
	seen := make(map[string]bool, len(files))
	var total int64
	for _, f := range files {
		if err := CheckPath(f.Path); err != nil {
			return nil, err
		}
		if Ignored(f.Path) {
			continue
		}
		switch {
		case seen[f.Path]:
			return nil, refused(f.Path, "is in the list twice")
		case !ValidSHA256(f.SHA256):
			return nil, refused(f.Path, "has a sha256 that is not 64 lower-case hex digits")
		case f.Size < 0:
			return nil, refused(f.Path, "has a size below 0")
		case f.Size > limits.MaxFileBytes:
			return nil, tooLarge(f.Path, "is larger than %d bytes", limits.MaxFileBytes)
		case f.Size > limits.MaxBytes-total:
			return nil, tooLarge("", "is larger than %d bytes when unpacked", limits.MaxBytes)
		}
		seen[f.Path] = true
		total += f.Size
		kept = append(kept, f)
	}
	for _, f := range kept {
		for parent := path.Dir(f.Path); parent != "."; parent = path.Dir(parent) {
			if seen[parent] {
				return nil, refused(f.Path, "is below a file of the same list")
			}
		}
	}
	sort.Slice(kept, func(i, j int) bool { return kept[i].Path < kept[j].Path })
	return kept, nil
}
