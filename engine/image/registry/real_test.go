package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

// The user and password of every htpasswd test: bcrypt, cost 5, of "s3cret-pass".
const htpasswd = "ann:$2y$05$abcdefghijklmnopqrstuuV7fpPozvyqJfnY19y0802WTlXUm6Rjy\n"

// realRegistry runs Debian's docker-registry on one of this package's ports.
func realRegistry(t *testing.T, auth bool) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Fatalf("the real registry is needed here: apt-get install docker-registry: %v", err)
	}
	dir := t.TempDir()
	host := freePort(t)
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %q}\n", dir, host)
	if auth {
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s/htpasswd}}\n", dir)
		if err := os.WriteFile(filepath.Join(dir, "htpasswd"), []byte(htpasswd), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(program, "serve", file)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		resp, err := http.Get("http://" + host + "/v2/")
		if err == nil {
			resp.Body.Close()
			return host
		}
		if sleep(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("docker-registry does not answer: %v\n%s", err, out.String())
		}
	}
}

// freePort picks a free one of the ports that this package's tests may use.
func freePort(t *testing.T) string {
	t.Helper()
	for port := 5300; port < 5400; port++ {
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", addr)
		if err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no port from 5300 to 5399 is free")
	return ""
}

func TestRealRegistry(t *testing.T) {
	for _, auth := range []bool{false, true} {
		t.Run(fmt.Sprintf("htpasswd %t", auth), func(t *testing.T) {
			host := realRegistry(t, auth)
			h := newHarness(t, quickLimits())
			ref := parse(t, host+"/team/app:v1")
			opts := Options{Credentials: login("ann", "s3cret-pass")}
			r, err := h.Open(ref, opts)
			if err != nil {
				t.Fatal(err)
			}
			if auth {
				_, _, err := h.Resolve(t.Context(), ref, Options{Credentials: login("ann", "wrong")})
				wantKind(t, err, errs.Unauthenticated)
			}
			_, err = r.Resolve(t.Context())
			wantKind(t, err, errs.NotFound)

			img := layered(5_000_000)
			docker := registrytest.Build(registrytest.Image{Docker: true, Platform: ocispec.Platform{OS: "linux", Architecture: "arm64"}})
			if err := pushImage(t, r, img, "v1"); err != nil {
				t.Fatal(err)
			}
			if err := pushImage(t, r, docker, "docker"); err != nil {
				t.Fatal(err)
			}
			index := registrytest.Index(img, docker)
			if err := r.PutManifest(t.Context(), index.Descriptor, index.Data, "all"); err != nil {
				t.Fatal(err)
			}
			for _, tag := range []string{"v1", "docker"} {
				if _, err := h.pull(t.Context(), ref.WithTag(tag), opts); err != nil {
					t.Errorf("%s: %v", tag, err)
				}
			}
			if d, err := r.resolve(t.Context(), "all", r.endpoints); err != nil || d.Digest != index.Descriptor.Digest {
				t.Errorf("index: %+v, %v", d, err)
			}
			if tags, err := r.Tags(t.Context()); err != nil || strings.Join(tags, " ") != "all docker v1" {
				t.Errorf("tags %q, %v", tags, err)
			}
			if got, err := r.Referrers(t.Context(), img.Descriptor.Digest, ""); err != nil || len(got) != 0 {
				t.Errorf("referrers of a registry that knows none: %v, %v", got, err)
			}
			other, err := h.Open(parse(t, host+"/other/app:v1"), opts)
			if err != nil {
				t.Fatal(err)
			}
			if how, err := other.PushBlob(t.Context(), img.Layers[0], source(img.Blobs[0]), "team/app"); how != Mounted || err != nil {
				t.Errorf("mount: %s, %v", how, err)
			}
			b, err := r.FetchBlob(t.Context(), img.Layers[0], img.Layers[0].Size-10)
			if err != nil || !b.ranged {
				t.Fatalf("range: %v", err)
			}
			b.Close()
			testRealResume(t, other)
		})
	}
}

// testRealResume breaks an upload off by a source that fails, so that the session
// on the server keeps what it got.
func testRealResume(t *testing.T, r *Remote) {
	data := bytes.Repeat([]byte("resume me!"), 400_000)
	d := describeBlob(data)
	opened := []int64{}
	src := SourceFunc(func(offset int64) (readCloser, error) {
		opened = append(opened, offset)
		if len(opened) == 1 {
			return &breaking{bytes.NewReader(data[:1_500_000])}, nil
		}
		return nopCloser(data[offset:]), nil
	})
	how, err := r.PushBlob(t.Context(), d, src)
	if how != Uploaded || err != nil {
		t.Fatalf("%s, %v, opened at %v", how, err, opened)
	}
	b, err := r.FetchBlob(t.Context(), d, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := readAll(b, d); err != nil {
		t.Error(err)
	}
	t.Logf("the source was opened at %v", opened)
}

type breaking struct{ *bytes.Reader }

func (b *breaking) Read(p []byte) (int, error) {
	if b.Len() == 0 {
		return 0, errors.New("the disk hiccups")
	}
	return b.Reader.Read(p)
}

func (b *breaking) Close() error { return nil }

// TestSkopeoReadsWhatWePush and the other way round: another client agrees.
func TestSkopeoAgrees(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Fatalf("skopeo is needed here: %v", err)
	}
	host := realRegistry(t, true)
	h := newHarness(t, quickLimits())
	opts := Options{Credentials: login("ann", "s3cret-pass")}
	r, err := h.Open(parse(t, host+"/team/app:v1"), opts)
	if err != nil {
		t.Fatal(err)
	}
	img := registrytest.Build(registrytest.Image{Layers: []registrytest.Layer{
		{Files: []registrytest.File{{Name: "a/"}, {Name: "a/b", Body: "gzip"}}},
		{Files: []registrytest.File{{Name: "c", Body: "zstd"}}, Compression: registrytest.Zstd},
	}})
	if err := pushImage(t, r, img, "v1"); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(skopeo, "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--src-creds=ann:s3cret-pass", "--dest-creds=ann:s3cret-pass",
		"docker://"+host+"/team/app:v1", "docker://"+host+"/team/copy:v2").CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	if _, err := h.pull(t.Context(), parse(t, host+"/team/copy:v2"), opts); err != nil {
		t.Error(err)
	}
}
