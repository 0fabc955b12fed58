package stdio

import (
	"path/filepath"
	"testing"
)

func TestPlaces(t *testing.T) {
	for text, want := range map[string]place{
		"":                              {},
		"/run/f":                        {scheme: "fifo", path: "/run/f"},
		"fifo:///run/f":                 {scheme: "fifo", path: "/run/f"},
		"file:///var/log/x":             {scheme: "file", path: "/var/log/x"},
		"binary:///bin/l?a=b":           {scheme: "binary", path: "/bin/l", query: "a=b"},
		"log:///var/log/x?max-line=10k": {scheme: "log", path: "/var/log/x", query: "max-line=10k"},
		"log:":                          {scheme: "log"},
		"log:?max-line=1m":              {scheme: "log", query: "max-line=1m"},
		"attach:?once=1":                {scheme: "attach", query: "once=1"},
		"pass:///run/s":                 {scheme: "pass", path: "/run/s"},
	} {
		got, err := parsePlace(text)
		want.text = text
		if err != nil || got != want {
			t.Errorf("%q: %+v %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"relative", "fifo:relative", "log:x", "log://host", "pass:", "npipe:///x", "http://x/y", ":", "pass:x", "binary:"} {
		if got, err := parsePlace(text); err == nil {
			t.Errorf("%q was taken for %+v", text, got)
		}
	}
}

// What a client sends as an address is an error or a place that can be opened.
func FuzzPlace(f *testing.F) {
	for _, s := range []string{"", "/x", "log:///x?max-size=1g", "binary:///l?a=%20b&a=c", "log:?max-line=99999999999999999999", "pass:///x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePlace(text)
		if err != nil {
			return
		}
		if p.path != "" && !filepath.IsAbs(p.path) {
			t.Errorf("%q: path %q", text, p.path)
		}
		switch p.scheme {
		case "log":
			if c, err := p.logConfig(); err == nil && (c.MaxLine < 0 || c.MaxSize < 0 || c.MaxFiles < 0) {
				t.Errorf("%q: %+v", text, c)
			}
		case "binary", "binary-v2":
			if args, err := p.arguments(); err == nil && len(args)%2 != 0 {
				t.Errorf("%q: %q", text, args)
			}
		}
	})
}
