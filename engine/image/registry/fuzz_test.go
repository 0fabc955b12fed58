package registry

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/base/errs"
)

func FuzzChallenge(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"`, `Basic realm="x", Bearer realm=y`, `Bearer realm="a\"b"`, `"`, `Bearer =`, `a b c=d,`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list := parseChallenges([]string{s, s})
		if len(list) > maxChallenges {
			t.Fatalf("%d challenges", len(list))
		}
		for _, c := range list {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Fatalf("scheme %q", c.scheme)
			}
			mergeScopes(strings.Fields(c.params["scope"]))
			srv, err := checkRealm(&endpoint{scheme: "https", host: "r.example"}, "https", c.params["realm"])
			if err != nil && !errs.Is(err, errs.PermissionDenied) {
				t.Fatalf("%v", err)
			}
			if err == nil && (srv.url.Scheme != "https" || srv.url.User != nil || srv.url.Hostname() == "") {
				t.Fatalf("realm %q passed as %v", c.params["realm"], srv.url)
			}
		}
	})
}

func FuzzHosts(f *testing.F) {
	for _, s := range []string{
		"server = \"https://a\"\n[host.\"https://b\"]\ncapabilities = [\"pull\"]\nskip_verify = true\n[host.\"https://b\".header]\nx = [\"a\"]\n",
		"host = {\"https://z\" = {}}", "[host]\n\"a\".proxy = \"http://p\"", "fallback = false\ndial_timeout = \"1s\"", "ca = [[]]\nclient = [[[]]]", "[[host]]", "[host.\"http://h:5000/x\"]\noverride_path = true",
	} {
		f.Add(s)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseHosts(dir, []byte(s))
		if err != nil {
			return
		}
		for _, e := range h.endpoints("r.example", Options{}) {
			u := e.blobURL("a/b", "sha256:x")
			again, err := url.Parse(u.String())
			if err != nil || again.Hostname() == "" || again.User != nil || again.Scheme != "http" && again.Scheme != "https" {
				t.Fatalf("%q gives %q: %v", s, u, err)
			}
		}
	})
}

func FuzzManifestShape(f *testing.F) {
	for _, s := range []string{
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`, `{"manifests":[{"a":1}]}`, `{"a":1,"A":2}`, `{`, `[]`, `{"layers":[],"x":{"y":[{}]}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readShape(data)
		if err != nil {
			if !errs.Is(err, errs.InvalidArgument) {
				t.Fatal(err)
			}
			return
		}
		var doc map[string]json.RawMessage
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatalf("accepted, but encoding/json says %v", err)
		}
		if len(doc) != len(s.keys) {
			t.Fatalf("%d keys, encoding/json finds %d", len(s.keys), len(doc))
		}
		typ, err := s.typeFor("")
		if err == nil && !isManifestType(typ) {
			t.Fatalf("type %q", typ)
		}
	})
}

func FuzzToken(f *testing.F) {
	f.Add([]byte(`{"token":"a","expires_in":60}`))
	f.Add([]byte(`{"access_token":"a","expires_in":"x"}`))
	now := time.Unix(0, 0)
	f.Fuzz(func(t *testing.T, data []byte) {
		tok, err := parseToken(data, now)
		if err == nil && (tok.value == "" || !validHeaderValue(tok.value) || tok.refresh.Sub(now) < 50*time.Second || tok.refresh.Sub(now) > maxTokenLife) {
			t.Fatalf("%+v", tok)
		}
	})
}

func FuzzRanges(f *testing.F) {
	f.Add("bytes 0-9/10", "3")
	f.Fuzz(func(t *testing.T, cr, ra string) {
		first, last, total, ok := parseContentRange(cr)
		if ok && (first < 0 || last < 0 || total < -1) {
			t.Fatalf("%q: %d-%d/%d", cr, first, last, total)
		}
		if d := retryAfter(ra); d < 0 {
			t.Fatalf("%q: %s", ra, d)
		}
		nextLink([]string{cr})
		redactText(clean(cr+ra, 100), ra)
	})
}
