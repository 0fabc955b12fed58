package registry

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

// describe prints endpoints shortly: origin+path capabilities ns flags.
func describe(list []*endpoint) []string {
	var out []string
	for _, e := range list {
		s := e.origin() + e.path + " " + strings.Join(e.caps.names(), ",")
		if e.ns != "" {
			s += " ns=" + e.ns
		}
		if e.orHTTP {
			s += " or-http"
		}
		if e.tls != nil && e.tls.skip {
			s += " unverified"
		}
		out = append(out, s)
	}
	return out
}

const all = "pull,resolve,push,referrers"

func TestHostsFile(t *testing.T) {
	for name, tc := range map[string]struct {
		host, file string
		opts       Options
		want       []string
		warn       string
	}{
		"nothing":           {host: "r.example", want: []string{"https://r.example/v2 " + all}},
		"docker hub":        {host: "docker.io", want: []string{"https://registry-1.docker.io/v2 " + all}},
		"default scheme":    {host: "r.example", opts: Options{DefaultScheme: "http"}, want: []string{"http://r.example/v2 " + all}},
		"skip verify":       {host: "r.example", opts: Options{SkipVerify: true}, want: []string{"https://r.example/v2 " + all + " unverified"}},
		"loopback":          {host: "localhost:5000", want: []string{"https://localhost:5000/v2 " + all + " or-http unverified"}},
		"loopback 127.8.0.": {host: "127.8.0.1:5000", want: []string{"https://127.8.0.1:5000/v2 " + all + " or-http unverified"}},
		"loopback port 80":  {host: "localhost:80", want: []string{"http://localhost/v2 " + all}},
		"loopback no port":  {host: "localhost", want: []string{"https://localhost/v2 " + all + " unverified"}},
		"loopback https":    {host: "localhost:5000", opts: Options{DefaultScheme: "https"}, want: []string{"https://localhost:5000/v2 " + all}},
		"file order is kept": {
			host: "docker.io",
			file: "[host.\"https://z.example\"]\n[host.\"https://a.example\"]\ncapabilities=[\"pull\"]\n[host.\"http://m.example/sub\"]\n[host.\"b.example\"]\ncapabilities=[\"Pull\",\"resolve\"]\n",
			want: []string{
				"https://z.example/v2 " + all + " ns=docker.io", "https://a.example/v2 pull ns=docker.io", "http://m.example/sub/v2 " + all + " ns=docker.io",
				"https://b.example/v2 pull,resolve ns=docker.io", "https://registry-1.docker.io/v2 " + all,
			},
		},
		"order of other spellings": {
			host: "r.example",
			file: "host.\"https://z.example\".skip_verify = true\nhost.\"https://y.example\" = { capabilities = [\"pull\"] }\nhost.\"https://x.example\" = {}\n",
			want: []string{
				"https://z.example/v2 " + all + " ns=r.example unverified", "https://y.example/v2 pull ns=r.example",
				"https://x.example/v2 " + all + " ns=r.example", "https://r.example/v2 " + all,
			},
		},
		"one table for all": {
			host: "r.example", file: "[host]\n\"https://z.example\" = {}\n\"https://a.example\".skip_verify = true\n",
			want: []string{"https://z.example/v2 " + all + " ns=r.example", "https://a.example/v2 " + all + " ns=r.example unverified", "https://r.example/v2 " + all},
		},
		"inline table": {
			host: "r.example", file: "host = {\"https://z.example\" = {}, \"https://a.example\" = {}}",
			want: []string{"https://z.example/v2 " + all + " ns=r.example", "https://a.example/v2 " + all + " ns=r.example", "https://r.example/v2 " + all},
		},
		"server": {host: "r.example", file: "server = \"https://s.example\"\ncapabilities=[\"pull\",\"resolve\"]", want: []string{"https://s.example/v2 pull,resolve ns=r.example"}},
		"server is the hub": {
			host: "docker.io", file: "server = \"https://registry-1.docker.io\"\n[host.\"https://m.example\"]",
			want: []string{"https://m.example/v2 " + all + " ns=docker.io", "https://registry-1.docker.io/v2 " + all},
		},
		"root settings go to the registry": {
			host: "r.example", file: "skip_verify = true\ndial_timeout = \"3s\"\n[host.\"https://m.example\"]",
			want: []string{"https://m.example/v2 " + all + " ns=r.example", "https://r.example/v2 " + all + " unverified"},
		},
		"no fallback": {
			host: "r.example", file: "fallback = false\n[host.\"https://m.example\"]", want: []string{"https://m.example/v2 " + all + " ns=r.example"},
		},
		"no fallback, server": {
			host: "r.example", file: "fallback = false\nserver = \"https://r.example\"\n[host.\"https://m.example\"]",
			want: []string{"https://m.example/v2 " + all + " ns=r.example"}, warn: "server is never asked",
		},
		"override path": {
			host: "r.example", file: "[host.\"https://m.example/api/docker//x/\"]\noverride_path = true",
			want: []string{"https://m.example/api/docker/x " + all + " ns=r.example", "https://r.example/v2 " + all},
		},
		"v2 is not doubled": {
			host: "r.example", file: "[host.\"https://m.example/v2\"]", want: []string{"https://m.example/v2 " + all + " ns=r.example", "https://r.example/v2 " + all},
		},
		"http with tls settings": {
			host: "r.example", file: "[host.\"http://10.0.0.1:5000\"]\nskip_verify = true",
			want: []string{"https://10.0.0.1:5000/v2 " + all + " ns=r.example or-http unverified", "https://r.example/v2 " + all},
		},
		"the operator decides on verification": {
			host: "r.example", file: "skip_verify = false", opts: Options{SkipVerify: true}, want: []string{"https://r.example/v2 " + all},
		},
		"same host again is no mirror": {
			host: "r.example", file: "[host.\"https://r.example\"]\ncapabilities=[\"pull\"]", want: []string{"https://r.example/v2 pull", "https://r.example/v2 " + all},
		},
		"unknown keys": {
			host: "r.example", file: "# comment\nmirrors = 3\n[host.\"https://m.example\"]\nskip_verifi = true\n",
			want: []string{"https://m.example/v2 " + all + " ns=r.example", "https://r.example/v2 " + all}, warn: "line 4: unknown key host.https://m.example.skip_verifi",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, Limits{})
			if tc.file != "" {
				h.hosts(t, tc.host, tc.file)
			}
			r, err := h.Open(imageref.Reference{Host: tc.host, Path: "a/b", Tag: "c"}, tc.opts)
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(r.endpoints); !slices.Equal(got, tc.want) {
				t.Errorf("got  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(tc.want, "\n     "))
			}
			if !strings.Contains(h.log.String(), tc.warn) {
				t.Errorf("log %q has no %q", h.log, tc.warn)
			}
		})
	}
}

func TestBadHostsFilesFailClosed(t *testing.T) {
	for _, file := range []string{
		"[host.\"https://m.example\"", "server = 3", "[host.\"ftp://m.example\"]", "[host.\"https://\"]", "[host.\"https://u:secretpw@m.example\"]",
		"[host.\"https://m.example?x=secretpw\"]", "capabilities = [\"fetch\"]", "ca = \"none.pem\"", "ca = 3", "ca = [3]", "client = [[\"a\"]]",
		"client = \"none.pem\"", "dial_timeout = \"x\"", "dial_timeout = \"-1s\"", "header = {\"a b\" = \"c\"}", "header = {a = \"secretpw\\n\"}",
		"proxy = \"secretpw\"", "proxy = \"ftp://p\"", "proxy=\"http://u:secretpw@p/x\"", "fallback = false", strings.Repeat("#", maxHostsFile+1),
	} {
		h := newHarness(t, Limits{})
		h.hosts(t, "r.example", file)
		for range 2 { // the second answer comes from the cache
			_, err := h.Open(imageref.Reference{Host: "r.example", Path: "a"}, Options{})
			if !errs.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "hosts.toml") {
				t.Errorf("%.60q: %v", file, err)
			}
			if err != nil && strings.Contains(err.Error(), "secretpw") {
				t.Errorf("%.60q: the error shows a secret: %v", file, err)
			}
		}
	}
}

func TestDirectoriesAreTriedInOrder(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	c := New(Config{HostsDirs: a + ":" + b + ":"})
	write := func(root, name, mirror string) {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = \"https://"+mirror+"\""), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	server := func(host string) string {
		r, err := c.Open(imageref.Reference{Host: host, Path: "a"}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return r.endpoints[len(r.endpoints)-1].host
	}
	for _, step := range []struct{ root, dir, mirror, host, want string }{
		{b, "r.example", "b1", "r.example", "b1"},
		{b, "_default", "b2", "other.example", "b2"},
		{b, "r.example", "b1", "r.example:5000", "b2"}, // another port is another registry
		{b, "r.example:5000", "b3", "r.example:5000", "b3"},
		{b, "r.example_5000_", "b4", "r.example:5000", "b4"},
		{a, "_default", "a1", "r.example:5000", "a1"}, // the first root that has anything
		{a, "r.example", "a2", "r.example", "a2"},
	} {
		write(step.root, step.dir, step.mirror)
		if got := server(step.host); got != step.want {
			t.Errorf("after %s/%s: %s is served by %s, want %s", filepath.Base(step.root), step.dir, step.host, got, step.want)
		}
	}
	for _, host := range []string{"..", ".", "a/b", "_default", "a\x00"} {
		if got := candidates(host); got != nil {
			t.Errorf("%q: candidates %q", host, got)
		}
	}
}

func TestHostsFilesAreReadAgain(t *testing.T) {
	h := newHarness(t, Limits{})
	ref := imageref.Reference{Host: "r.example", Path: "a"}
	first := func() string {
		r, err := h.Open(ref, Options{})
		if err != nil {
			return err.Error()
		}
		return r.endpoints[0].host
	}
	h.hosts(t, "r.example", "[host.\"https://one.example\"]\nodd = 1")
	for range 3 {
		if got := first(); got != "one.example" {
			t.Fatalf("got %s", got)
		}
	}
	if n := strings.Count(h.log.String(), "unknown key odd"); n > 1 {
		t.Errorf("an unchanged file was parsed %d times", n)
	}
	h.hosts(t, "r.example", "[host.\"https://second.example\"]")
	if got := first(); got != "second.example" {
		t.Errorf("after the change: %s", got)
	}
	h.hosts(t, "r.example", "[host.")
	if got := first(); !strings.Contains(got, "line 1") {
		t.Errorf("broken file: %s", got)
	}
	if err := os.Remove(filepath.Join(h.dir, "r.example", "hosts.toml")); err != nil {
		t.Fatal(err)
	}
	if got := first(); got != "r.example" {
		t.Errorf("after removal: %s", got)
	}
	r, err := h.Open(ref, Options{HostsDirs: t.TempDir()})
	if err != nil || r.endpoints[0].host != "r.example" || r.file != "" {
		t.Errorf("another directory for one call: %+v, %v", r, err)
	}
}

func TestPlainHTTPOnLoopback(t *testing.T) {
	reg, h, _, ref := setup(t, registrytest.Options{}, 100)
	for range 3 {
		if _, err := h.pull(t.Context(), ref, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := h.Resolve(t.Context(), ref, Options{DefaultScheme: "https"})
	if err == nil || !strings.Contains(err.Error(), "plain http") {
		t.Errorf("https asked for explicitly: %v", err)
	}
	if got := reg.Count("", ""); got == 0 {
		t.Error("no request arrived")
	}
}

func TestConfiguredHeadersGoToTheirHost(t *testing.T) {
	reg, h, _, ref := setup(t, registrytest.Options{}, 100)
	h.hosts(t, ref.Host, fmt.Sprintf("[host.%q]\n[host.%q.header]\nx-mirror = [\"a\", \"b\"]\n", reg.URL, reg.URL))
	if _, err := h.pull(t.Context(), ref, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := reg.Requests()[0].Header["X-Mirror"]; !reflect.DeepEqual(got, []string{"a", "b"}) {
		t.Errorf("got %q", got)
	}
}

func TestProxy(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{})
	reg.Push("a/b", "c", layered(100))
	h := newHarness(t, quickLimits())
	h.hosts(t, "far.example", fmt.Sprintf("server = \"http://far.example\"\nproxy = %q\n", reg.URL)) // the registry plays the proxy
	if _, err := h.pull(t.Context(), imageref.Reference{Host: "far.example", Path: "a/b", Tag: "c"}, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := reg.Requests()[0].Host; got != "far.example" {
		t.Errorf("asked for host %q", got)
	}
}
