package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

// quickLimits are the budgets of tests: everything that waits, waits little.
func quickLimits() Limits {
	return Limits{
		HeaderWait: 5 * time.Second, QuickConnect: 500 * time.Millisecond, Backoff: time.Millisecond, RetryAfter: 2 * time.Second,
		Stall: time.Second, RateWindow: 500 * time.Millisecond,
	}
}

// harness is a client with a hosts directory and a log of its own.
type harness struct {
	*Client
	dir string
	log *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newHarness(t testing.TB, limits Limits, credentialFiles ...string) *harness {
	t.Helper()
	h := &harness{dir: t.TempDir(), log: &lockedBuffer{}}
	h.Client = New(Config{
		HostsDirs: h.dir, CredentialFiles: credentialFiles, Limits: limits, DialTimeout: 2 * time.Second,
		Logger: slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	t.Cleanup(h.Close)
	return h
}

// hosts writes the hosts.toml of a registry host.
func (h *harness) hosts(t testing.TB, host, text string) {
	t.Helper()
	dir := filepath.Join(h.dir, host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// place makes a host:port lead to a listener while the client believes that it
// connects to the address ip.
type place struct{ to, ip string }

func (h *harness) route(places map[string]place) {
	h.pool.dial = func(ctx context.Context, d *net.Dialer, network, addr string) (net.Conn, error) {
		p, ok := places[addr]
		if !ok {
			return nil, fmt.Errorf("dial %s: no such place in this test", addr)
		}
		pretend := netip.AddrPortFrom(netip.MustParseAddr(p.ip), 443).String()
		if d.ControlContext != nil {
			if err := d.ControlContext(ctx, network, pretend, nil); err != nil {
				return nil, err
			}
		}
		plain := *d
		plain.ControlContext = nil
		conn, err := plain.DialContext(ctx, network, p.to)
		if err != nil {
			return nil, err
		}
		return pretendConn{conn, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(pretend))}, nil
	}
}

type pretendConn struct {
	net.Conn
	remote net.Addr
}

func (c pretendConn) RemoteAddr() net.Addr { return c.remote }

func parse(t testing.TB, s string) imageref.Reference {
	t.Helper()
	ref, err := imageref.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// pull fetches everything that a name means, checks it, and returns the bytes of
// all layers.
func (h *harness) pull(ctx context.Context, ref imageref.Reference, opts Options) (int64, error) {
	d, r, err := h.Resolve(ctx, ref, opts)
	if err != nil {
		return 0, err
	}
	data, err := r.FetchManifest(ctx, d)
	if err != nil {
		return 0, err
	}
	return fetchParts(ctx, r, data)
}

// layered makes an image whose only layer is size bytes that do not compress.
func layered(size int) registrytest.Built {
	body := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(body)
	return registrytest.Build(registrytest.Image{Layers: []registrytest.Layer{{
		Files: []registrytest.File{{Name: "blob", Body: string(body)}}, Compression: registrytest.Plain,
	}}})
}

// readAll reads a blob and checks its digest.
func readAll(r io.Reader, d ocispec.Descriptor) (int64, error) {
	v := d.Digest.Verifier()
	n, err := io.Copy(v, r)
	if err != nil {
		return n, err
	}
	if n != d.Size || !v.Verified() {
		return n, fmt.Errorf("%d bytes of %d, digest right: %t", n, d.Size, v.Verified())
	}
	return n, nil
}

// setup is a registry with one image, and a client.
func setup(t *testing.T, o registrytest.Options, size int) (*registrytest.Registry, *harness, registrytest.Built, imageref.Reference) {
	t.Helper()
	reg := registrytest.Start(t, o)
	img := layered(size)
	reg.Push("lib/app", "v1", img)
	return reg, newHarness(t, quickLimits()), img, parse(t, reg.Host+"/lib/app:v1")
}

func login(user, password string) CredentialFunc {
	return func(context.Context, string) (Credential, error) {
		return Credential{Username: user, Secret: password}, nil
	}
}

func wantKind(t testing.TB, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error %v is not of kind %v", err, kind)
	}
}

func TestResolveWaysToSayIt(t *testing.T) {
	head := func(do registrytest.Doer) registrytest.Fault {
		return registrytest.Fault{Method: "HEAD", Path: "/manifests/", Do: do}
	}
	for name, tc := range map[string]struct {
		opts  registrytest.Options
		fault registrytest.Fault
	}{
		"plain":                 {},
		"over tls":              {opts: registrytest.Options{TLS: true}},
		"no digest header":      {opts: registrytest.Options{NoDigestHeader: true}},
		"HEAD not allowed":      {fault: head(registrytest.Status(405))},
		"HEAD without type":     {fault: head(registrytest.Header("Content-Type", ""))},
		"HEAD with odd type":    {fault: head(registrytest.Header("Content-Type", "text/html"))},
		"type with parameters":  {fault: head(registrytest.Header("Content-Type", ocispec.MediaTypeImageManifest+"; charset=utf-8"))},
		"GET says octet-stream": {opts: registrytest.Options{NoDigestHeader: true}, fault: registrytest.Fault{Path: "/manifests/", Do: registrytest.Header("Content-Type", "application/octet-stream")}},
	} {
		t.Run(name, func(t *testing.T) {
			reg, h, img, ref := setup(t, tc.opts, 1000)
			if tc.fault.Do != nil {
				reg.Add(tc.fault)
			}
			for _, ref := range []imageref.Reference{ref, ref.WithDigest(img.Descriptor.Digest)} {
				d, r, err := h.Resolve(t.Context(), ref, Options{})
				if err != nil {
					t.Fatal(err)
				}
				if d.Digest != img.Descriptor.Digest || d.Size != img.Descriptor.Size || d.MediaType != img.Descriptor.MediaType {
					t.Errorf("%s: got %+v", ref, d)
				}
				data, err := r.FetchManifest(t.Context(), d)
				if err != nil || !bytes.Equal(data, img.Data) {
					t.Errorf("%s: manifest: %v", ref, err)
				}
			}
		})
	}
}

func TestPullAll(t *testing.T) {
	reg, h, img, ref := setup(t, registrytest.Options{}, 300_000)
	n, err := h.pull(t.Context(), ref, Options{Header: http.Header{"x-extra": {"1"}}})
	if err != nil || n != img.Layers[0].Size+img.Config.Size {
		t.Fatalf("%d bytes, %v", n, err)
	}
	for _, q := range reg.Requests() {
		if q.Header.Get("X-Extra") != "1" || q.Header.Get("User-Agent") != "berth" || q.Header.Get("Authorization") != "" || q.Query.Has("ns") {
			t.Errorf("%s %s: %v", q.Method, q.Path, q.Header)
		}
	}
	// A blob named by its digest resolves too.
	d, _, err := h.Resolve(t.Context(), ref.WithDigest(img.Layers[0].Digest), Options{})
	if err != nil || d.Size != img.Layers[0].Size || d.MediaType != "application/octet-stream" {
		t.Errorf("resolve of a blob: %+v, %v", d, err)
	}
	_, _, err = h.Resolve(t.Context(), ref.WithTag("none"), Options{})
	wantKind(t, err, errs.NotFound)
	_, _, err = h.Resolve(t.Context(), ref.WithDigest(digest.FromString("x")), Options{})
	wantKind(t, err, errs.NotFound)
}

func TestInlineData(t *testing.T) {
	reg, h, img, ref := setup(t, registrytest.Options{}, 10)
	r, err := h.Open(ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := img.Descriptor
	d.Data = img.Data
	if data, err := r.FetchManifest(t.Context(), d); err != nil || !bytes.Equal(data, img.Data) || len(reg.Requests()) != 0 {
		t.Errorf("right inline data: %v, %d requests", err, len(reg.Requests()))
	}
	d.Data = []byte(`{"layers":[]}`)
	if data, err := r.FetchManifest(t.Context(), d); err != nil || !bytes.Equal(data, img.Data) || len(reg.Requests()) != 1 {
		t.Errorf("wrong inline data: %v, %d requests", err, len(reg.Requests()))
	}
}

func TestDescriptorsAreCheckedBeforeAnyRequest(t *testing.T) {
	reg, h, img, ref := setup(t, registrytest.Options{}, 10)
	r, err := h.Open(ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	hex := img.Descriptor.Digest.Encoded()
	for _, s := range []string{
		"", "sha256:", "sha256:../../x", "sha256:" + hex[:63], "sha256:" + hex + "0", "sha256:" + strings.ToUpper(hex), "md5:" + hex[:32],
		"sha256:/" + hex[:63], "x/../sha256:" + hex, "sha256:" + hex + "?x",
	} {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(s), Size: 10}
		_, e1 := r.FetchManifest(t.Context(), d)
		_, e2 := r.FetchBlob(t.Context(), d, 0)
		_, e3 := r.FetchSmall(t.Context(), d)
		_, e4 := r.PushBlob(t.Context(), d, nil)
		_, e5 := r.Referrers(t.Context(), d.Digest, "")
		e6 := r.PutManifest(t.Context(), d, nil, "")
		for i, err := range []error{e1, e2, e3, e4, e5, e6} {
			if !errs.Is(err, errs.InvalidArgument) {
				t.Errorf("%q, call %d: %v", s, i+1, err)
			}
		}
	}
	for _, size := range []int64{-1, -1 << 63, 1<<63 - 1} {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: img.Descriptor.Digest, Size: size}
		if _, err := r.FetchManifest(t.Context(), d); err == nil {
			t.Errorf("manifest of size %d was fetched", size)
		}
		if _, err := r.FetchBlob(t.Context(), d, 0); err == nil && size < 0 {
			t.Errorf("blob of size %d was fetched", size)
		}
	}
	if _, err := r.FetchBlob(t.Context(), img.Layers[0], img.Layers[0].Size+1); !errs.Is(err, errs.OutOfRange) {
		t.Errorf("offset beyond the end: %v", err)
	}
	// Only the blob of absurd but possible size was asked for.
	if n := reg.Count("GET", "/manifests/"); n != 0 {
		t.Errorf("%d manifest requests", n)
	}
}

func TestTagsAndReferrers(t *testing.T) {
	for _, o := range []registrytest.Options{{}, {PageSize: 2}, {NoReferrers: true}} {
		reg, h, img, ref := setup(t, o, 10)
		want := []ocispec.Descriptor{}
		for i := range 5 {
			sig := registrytest.Build(registrytest.Image{
				Layers: []registrytest.Layer{{Tar: []byte(fmt.Sprint("signature ", i))}}, Subject: &img.Descriptor,
			})
			reg.Push("lib/app", fmt.Sprint("t", i), sig)
			want = append(want, sig.Descriptor)
		}
		r, err := h.Open(ref, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if tags, err := r.Tags(t.Context()); err != nil || len(tags) != 6 || tags[0] != "t0" {
			t.Errorf("%+v: tags %v, %v", o, tags, err)
		}
		if o.NoReferrers {
			for i := range want {
				want[i].ArtifactType = ocispec.MediaTypeImageConfig
			}
			index := registrytest.Index()
			index.Data, _ = jsonIndex(want)
			reg.PutManifest("lib/app", strings.Replace(img.Descriptor.Digest.String(), ":", "-", 1), ocispec.MediaTypeImageIndex, index.Data)
		}
		got, err := r.Referrers(t.Context(), img.Descriptor.Digest, ocispec.MediaTypeImageConfig)
		if err != nil || len(got) != 5 {
			t.Errorf("%+v: referrers %v, %v", o, got, err)
		}
		if got, err = r.Referrers(t.Context(), img.Descriptor.Digest, "other/type"); err != nil || len(got) != 0 {
			t.Errorf("%+v: of another type %v, %v", o, got, err)
		}
		if got, err = r.Referrers(t.Context(), digest.FromString("nothing"), ""); err != nil || len(got) != 0 {
			t.Errorf("%+v: of nothing %v, %v", o, got, err)
		}
	}
}
