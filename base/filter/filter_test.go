package filter

import (
	"strings"
	"testing"
)

var thing = map[string]string{"name": "docker.io/library/busybox:latest", "id": "abc", "topic": "/tasks/exit", "namespace": "moby"}
var labels = map[string]string{"a.b/c": "yes", "foo": "bar", "quote": `say "hi"`}

func fields(path []string) (string, bool) {
	if path[0] == "labels" {
		return Labels(labels, path[1:])
	}
	v, ok := thing[strings.Join(path, ".")]
	return v, ok
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want bool
	}{
		{nil, true},
		{[]string{""}, true},
		{[]string{"id==abc"}, true},
		{[]string{"id!=abc"}, false},
		{[]string{"id==abc,name~=busybox"}, true},
		{[]string{"id==abc,name~=alpine"}, false},
		{[]string{"id==abc, name~=busybox"}, true},
		{[]string{" id == abc ,name"}, true},
		{[]string{"id==no", "id==abc"}, true},
		{[]string{"name==docker.io/library/busybox:latest"}, true},
		{[]string{`name=="docker.io/library/busybox:latest"`}, true},
		{[]string{"name"}, true},
		{[]string{"nothing"}, false},
		{[]string{"labels.foo==bar"}, true},
		{[]string{`labels."a.b/c"==yes`}, true},
		{[]string{`labels."a.b/c"`}, true},
		{[]string{`labels."none"`}, false},
		{[]string{`labels."none"!=x`}, true},
		{[]string{`labels.quote=="say \"hi\""`}, true},
		{[]string{`namespace==moby,topic~=|^/tasks/|`}, true},
		{[]string{`topic~=/^.tasks.exit$/`}, true},
		{[]string{`topic~=/^\/tasks\/exit$/`}, true},
		{[]string{`topic~="^/images/"`}, false},
	} {
		f, err := Parse(c.in...)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if got := f.Match(fields); got != c.want {
			t.Errorf("%q: got %v", c.in, got)
		}
	}
}

func TestMalformed(t *testing.T) {
	for _, s := range []string{"==x", "id=abc", "id==", "id==a b", "id==  ", `labels."x`, "name~=[", "a..b", ",", "id==a,", `id=="\q"`} {
		if _, err := Parse(s); err == nil {
			t.Errorf("%q was accepted", s)
		} else if !strings.Contains(err.Error(), "filter ") {
			t.Errorf("%q: error does not show the filter: %v", s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"id==abc,name~=x", `labels."a"!=/x/`, `t~=|^/a|`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if flt, err := Parse(s); err == nil {
			flt.Match(fields)
		}
	})
}
