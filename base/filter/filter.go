// Package filter reads containerd's filter language and decides whether a thing
// matches. One string is a conjunction of selectors, several strings are
// alternatives:
//
//	filter   = selector { "," selector }
//	selector = path [ ("==" | "!=" | "~=") value ]
//	path     = part { "." part }        part may be quoted: labels."a.b/c"
//	value    = bare | "quoted" | after ~= also /…/ or |…|
//
// A bare path asks for presence; ~= takes a Go regular expression.
package filter

import (
	"regexp"
	"strings"

	"github.com/berthd/berth/base/errs"
)

// Fields gives the value at a path, and whether the path is there at all.
type Fields func(path []string) (value string, present bool)

// Filter decides whether a thing matches.
type Filter struct {
	anyOf [][]selector
}

type selector struct {
	path  []string
	op    string // "", "==", "!=", "~="
	value string
	re    *regexp.Regexp
}

// Parse reads the alternatives. No strings at all, or only empty ones, match
// everything. A malformed string is an InvalidArgument error that shows where.
func Parse(alternatives ...string) (Filter, error) {
	var f Filter
	for _, s := range alternatives {
		sels, err := parseOne(s)
		if err != nil {
			return Filter{}, errs.New(errs.InvalidArgument, "filter %q: %v", s, err)
		}
		f.anyOf = append(f.anyOf, sels)
	}
	return f, nil
}

// Empty reports whether the filter matches everything without looking.
func (f Filter) Empty() bool {
	for _, sels := range f.anyOf {
		if len(sels) == 0 {
			return true
		}
	}
	return len(f.anyOf) == 0
}

// Match reports whether the thing with these fields is chosen.
func (f Filter) Match(fields Fields) bool {
	if f.Empty() {
		return true
	}
	for _, sels := range f.anyOf {
		if all(sels, fields) {
			return true
		}
	}
	return false
}

func all(sels []selector, fields Fields) bool {
	for _, s := range sels {
		if !s.match(fields) {
			return false
		}
	}
	return true
}

func (s selector) match(fields Fields) bool {
	v, ok := fields(s.path)
	switch s.op {
	case "==":
		return ok && v == s.value
	case "!=":
		return v != s.value
	case "~=":
		return ok && s.re.MatchString(v)
	}
	return ok
}

// Labels serves the path below a "labels" part: its parts joined again, because
// clients write both labels.foo and labels."a.b/c".
func Labels(labels map[string]string, path []string) (string, bool) {
	v, ok := labels[strings.Join(path, ".")]
	return v, ok
}
