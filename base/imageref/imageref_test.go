package imageref

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/base/errs"
)

const (
	hex64 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	sum   = "sha256:" + hex64
)

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"busybox":                               "docker.io/library/busybox:latest",
		"busybox:1.36":                          "docker.io/library/busybox:1.36",
		"user/app":                              "docker.io/user/app:latest",
		"docker.io/busybox":                     "docker.io/library/busybox:latest",
		"index.docker.io/busybox":               "docker.io/library/busybox:latest",
		"localhost/app":                         "localhost/app:latest",
		"localhost:5000/app":                    "localhost:5000/app:latest",
		"127.0.0.1:5300/a/b/c:v1":               "127.0.0.1:5300/a/b/c:v1",
		"[::1]:5000/a":                          "[::1]:5000/a:latest",
		"registry.k8s.io/pause:3.10":            "registry.k8s.io/pause:3.10",
		"busybox@" + sum:                        "docker.io/library/busybox@" + sum,
		"busybox:1@" + sum:                      "docker.io/library/busybox:1@" + sum,
		"UPPER.example/app":                     "UPPER.example/app:latest",
		"gcr.io/x/y@sha512:" + hex64 + hex64:    "gcr.io/x/y@sha512:" + hex64 + hex64,
		"quay.io/a__b/c-d.e:T_1.2-3":            "quay.io/a__b/c-d.e:T_1.2-3",
		"example.com/app:" + repeat("t", 128):   "example.com/app:" + repeat("t", 128),
		"example.com:443/" + repeat("p", 200):   "example.com:443/" + repeat("p", 200) + ":latest",
		"a.b/" + strings.Repeat("x/", 20) + "y": "a.b/" + strings.Repeat("x/", 20) + "y:latest",
	} {
		r, err := Normalize(in)
		if err != nil {
			t.Errorf("Normalize(%q): %v", in, err)
			continue
		}
		if r.String() != want {
			t.Errorf("Normalize(%q) = %s, want %s", in, r, want)
		}
		if again, err := Parse(r.String()); err != nil || again != r {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", r, again, err, r)
		}
	}
}

func repeat(s string, n int) string { return strings.Repeat(s, n) }

// bad are names that neither form accepts, the digest forms of CVE-2024-3727 among them.
var bad = []string{
	"", " ", "a b", ":tag", "@" + sum, "/a", "a/", "a//b", "../a", "a/../b", "host/..", "host/.", "host/a:", "host/a@",
	"host/a:-x", "host/a:" + strings.Repeat("t", 129), "host/a:t/b", "host/A", "http://host/a", "host/a?x=1", "host/a#x",
	"user@host/a", "user:pw@host/a", "host:port/a", "host/a\x00", "host/a\n", "hôst.example/a", "host/a%2e",
	"host/a@sha256:", "host/a@sha256:" + hex64[:63], "host/a@" + sum + "0", "host/a@sha256:" + strings.ToUpper(hex64),
	"host/a@md5:" + hex64[:32], "host/a@sha256:../" + hex64[:61], "host/a@sha256:/" + hex64[:63], "host/a@sha256+x:" + hex64,
	"host/a@sha256:" + hex64 + "/../x", "host/a@sha512:" + hex64, "host/a@" + sum + "@" + sum, hex64,
	"host/" + strings.Repeat("p", 300), strings.Repeat("a", MaxLength+1),
}

func TestBadNamesAreRefused(t *testing.T) {
	for _, s := range bad {
		for name, parse := range map[string]func(string) (Reference, error){"Parse": Parse, "Normalize": Normalize} {
			if r, err := parse(s); err == nil {
				t.Errorf("%s(%q) = %+v, want an error", name, s, r)
			} else if !errs.Is(err, errs.InvalidArgument) {
				t.Errorf("%s(%q): %v is not InvalidArgument", name, s, err)
			}
		}
	}
}

func TestParseTakesTheFirstPartAsHost(t *testing.T) {
	r, err := Parse("registry/app:v1")
	if err != nil || r.Host != "registry" || r.Path != "app" || r.Tag != "v1" || r.Object() != "v1" {
		t.Fatalf("got %+v, %v", r, err)
	}
	if _, err := Parse("busybox"); err == nil || !strings.Contains(err.Error(), "docker.io/library/busybox") {
		t.Errorf("a name without a host: %v", err)
	}
	if got := r.WithDigest(sum); got.String() != "registry/app@"+sum || got.Object() != sum {
		t.Errorf("WithDigest: %s", got)
	}
	if got := r.WithDigest(sum).WithTag("x").String(); got != "registry/app:x" {
		t.Errorf("WithTag: %s", got)
	}
}

func TestFamiliar(t *testing.T) {
	for in, want := range map[string]string{
		"docker.io/library/busybox:latest": "busybox:latest",
		"docker.io/user/app:v1":            "user/app:v1",
		"docker.io/library/busybox@" + sum: "busybox@" + sum,
		"quay.io/a/b:c":                    "quay.io/a/b:c",
		"localhost:5000/a:b":               "localhost:5000/a:b",
		"registry/app:v1":                  "registry/app:v1", // no short form: it would mean Docker Hub
	} {
		r, err := Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Familiar(); got != want {
			t.Errorf("%s: Familiar() = %s, want %s", in, got, want)
		}
	}
}

func TestCheckDigest(t *testing.T) {
	for _, d := range []string{sum, "sha512:" + hex64 + hex64, "sha384:" + hex64 + hex64[:32]} {
		if err := CheckDigest(digest.Digest(d)); err != nil {
			t.Errorf("%s: %v", d, err)
		}
	}
	for _, d := range []string{
		"", "sha256", "sha256:", ":" + hex64, hex64, sum[:len(sum)-1], sum + "0", strings.ToUpper(sum), "sha256:" + strings.ToUpper(hex64),
		"sha256:../../../../etc/passwd", "sha256:/" + hex64[:63], "sha256:.." + hex64[:62], "sha1:" + hex64[:40], "x:" + hex64,
		"sha256:" + hex64 + "\n", " " + sum, "sha256::" + hex64[:63], "sha256:" + hex64[:63] + "\x00", "sha512:" + hex64, "../sha256:" + hex64,
	} {
		if err := CheckDigest(digest.Digest(d)); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%q: %v, want InvalidArgument", d, err)
		}
	}
}

func TestCheckTag(t *testing.T) {
	for s, ok := range map[string]bool{
		"latest": true, "v1.2-3_4": true, "_x": true, strings.Repeat("a", 128): true,
		"": false, ".x": false, "-x": false, "a/b": false, "a:b": false, "a\n": false, "..": false, strings.Repeat("a", 129): false,
	} {
		if err := CheckTag(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzReference(f *testing.F) {
	f.Add("busybox")
	f.Add("localhost:5000/a/b:c@" + sum)
	for _, s := range bad {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (Reference, error){Parse, Normalize} {
			r, err := parse(s)
			if err != nil {
				if !errs.Is(err, errs.InvalidArgument) {
					t.Fatalf("%q: %v is not InvalidArgument", s, err)
				}
				continue
			}
			if r.Host == "" || r.Path == "" || strings.Contains(r.Path, "..") || strings.ContainsAny(r.String(), " \n\x00?#%") {
				t.Fatalf("%q: accepted as %+v", s, r)
			}
			if again, err := Parse(r.String()); err != nil || again != r {
				t.Fatalf("%q: %+v does not read back: %+v, %v", s, r, again, err)
			}
			if again, err := Normalize(r.Familiar()); r.Tag != "" && err == nil && again.Name() != r.Name() && r.Familiar() != r.String() {
				t.Fatalf("%q: familiar form %q means %s", s, r.Familiar(), again)
			}
		}
	})
}
