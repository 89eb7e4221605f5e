package model

import (
	"errors"
	"strings"
	"testing"
)

func TestListIsHeldToTheRulesOfAZip(t *testing.T) {
	limits := Limits{MaxFiles: 3, MaxFileBytes: 10, MaxBytes: 15}
	sum := strings.Repeat("a", 64)
	file := func(path string, size int64) File { return File{Path: path, Size: size, SHA256: sum} }
	for rule, files := range map[string][]File{
		`"../x" leaves the bundle`:               {file("../x", 0)},
		`"" leaves the bundle`:                   {file("", 0)},
		`"/x" must be a relative path`:           {file("/x", 0)},
		`"a/../x" leaves the bundle`:             {file("a/../x", 0)},
		`"a\\x" must be a relative path`:         {file(`a\x`, 0)},
		`"a\x00" must be a relative path`:        {file("a\x00", 0)},
		"has a name that is not UTF-8":           {file("\xff", 0)},
		"has a path longer than 1024 bytes":      {file(strings.Repeat("a/", 600)+"b", 0)},
		"has a name longer than 255 bytes":       {file("a/"+strings.Repeat("b", 256), 0)},
		"x is in the list twice":                 {file("x", 0), file("x", 1)},
		"a/b is below a file of the same list":   {file("a/b", 0), file("a", 0)},
		"a/b/c is below a file of the same list": {file("a", 0), file("a/b/c", 0)},
		"x has a sha256":                         {{Path: "x", SHA256: strings.Repeat("A", 64)}},
		"y has a sha256":                         {{Path: "y", SHA256: "../../../" + sum[9:]}},
		"x has a size below 0":                   {file("x", -1)},
		"x is larger than 10 bytes":              {file("x", 11)},
		"bundle is larger than 15 bytes when":    {file("x", 10), file("y", 6)},
		"bundle has 4 entries; 3 are allowed":    {file("a", 0), file("b", 0), file("c", 0), file("d", 0)},
	} {
		_, err := CheckList(files, limits)
		var refusal *RefusedError
		if !errors.As(err, &refusal) || !strings.Contains(err.Error(), rule) {
			t.Errorf("want %q, got %v", rule, err)
		}
		if large := strings.Contains(rule, "larger") || strings.Contains(rule, "entries"); errors.Is(err, ErrTooLarge) != large {
			t.Errorf("%v: too large is %v", err, !large)
		}
	}
	kept, err := CheckList([]File{file("b/c", 1), file("a", 2), {Path: "b/__pycache__/x.pyc"}}, limits)
	if err != nil || len(kept) != 2 || kept[0].Path != "a" || kept[1].Path != "b/c" {
		t.Errorf("kept %v, %v", kept, err)
	}
}
