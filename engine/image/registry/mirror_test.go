package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

func tlsServer(t *testing.T, h http.Handler, clients *x509.CertPool) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

// mirrored is a registry "far.example" behind two mirrors.
type mirrored struct {
	*harness
	one, two, origin *registrytest.Registry
	img              registrytest.Built
	ref              imageref.Reference
}

func newMirrored(t *testing.T, extra string) *mirrored {
	m := &mirrored{harness: newHarness(t, quickLimits()), img: layered(100_000)}
	for _, r := range []**registrytest.Registry{&m.one, &m.two, &m.origin} {
		*r = registrytest.Start(t, registrytest.Options{})
		(*r).Push("lib/app", "v1", m.img)
	}
	m.hosts(t, "far.example", fmt.Sprintf("%s\nserver = %q\n[host.%q]\n[host.%q]\n", extra, m.origin.URL, m.one.URL, m.two.URL))
	m.ref = imageref.Reference{Host: "far.example", Path: "lib/app", Tag: "v1"}
	return m
}

func (m *mirrored) served() string {
	s := ""
	for _, r := range []*registrytest.Registry{m.one, m.two, m.origin} {
		s += fmt.Sprint(min(r.Count("GET", "/blobs/"), 1))
	}
	return s
}

func TestMirrorsAreAskedInOrder(t *testing.T) {
	m := newMirrored(t, "")
	if _, err := m.pull(t.Context(), m.ref, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := m.served(); got != "100" {
		t.Errorf("served by %s", got)
	}
	for _, q := range m.one.Requests() {
		if q.Query.Get("ns") != "far.example" {
			t.Errorf("%s without ns", q.Path)
		}
	}
}

// TestHeaderOfTheClient is sent with every request, and gives way to what hosts.toml says.
func TestHeaderOfTheClient(t *testing.T) {
	m := newMirrored(t, "")
	m.hosts(t, "far.example", fmt.Sprintf("server = %q\n[host.%q]\n[host.%q.header]\nX-Both = \"file\"\n", m.origin.URL, m.one.URL, m.one.URL))
	m.Client.Reload(m.Client.cfg.HostsDirs, nil, http.Header{"x-node": {"n1"}, "X-Both": {"client"}})
	if _, err := m.pull(t.Context(), m.ref, Options{}); err != nil {
		t.Fatal(err)
	}
	all := m.one.Requests()
	if len(all) == 0 {
		t.Fatal("nothing was asked")
	}
	for _, q := range all {
		if q.Header.Get("X-Node") != "n1" || q.Header.Get("X-Both") != "file" {
			t.Errorf("%s %s: %q %q", q.Method, q.Path, q.Header.Get("X-Node"), q.Header.Get("X-Both"))
		}
	}
}

func TestBadMirrorsAreLeftBehind(t *testing.T) {
	for name, do := range map[string]registrytest.Doer{
		"404": registrytest.Status(404), "403": registrytest.Status(403), "401": registrytest.Status(401), "409": registrytest.Status(409),
		"418": registrytest.Status(418), "500": registrytest.Status(500), "503": registrytest.Status(503),
		"429 for an age": registrytest.Status(429, "Retry-After", "1000000000"), "416": registrytest.Status(416), "405": registrytest.Status(405),
		"drops": registrytest.Drop(), "html": registrytest.Body("<html>sign in</html>", "Content-Type", "text/html"),
		"poisoned": registrytest.Wrong(), "other digest": registrytest.Header("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64)),
		"no digest in the digest": registrytest.Header("Docker-Content-Digest", "sha256:../../etc/passwd"),
		"redirects to a file":     registrytest.Redirect(302, "file:///etc/passwd"),
		"redirects for ever":      registrytest.Redirect(302, "/v2/x"),
		"huge manifest":           registrytest.Header("Content-Length", "99999999999"),
	} {
		t.Run(name, func(t *testing.T) {
			m := newMirrored(t, "")
			m.one.Add(registrytest.Fault{Do: do})
			m.two.Add(registrytest.Fault{Do: do})
			ref := m.ref.WithDigest(m.img.Descriptor.Digest) // a mirror may not lie about a tag undetected: see below
			began := time.Now()
			if _, err := m.pull(t.Context(), ref, Options{}); err != nil {
				if name != "poisoned" {
					t.Fatal(err)
				}
				// Only a blob's digest is the reader's to check.
				if !strings.Contains(err.Error(), "digest right: false") {
					t.Fatal(err)
				}
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestPoisonedMirrorManifestIsNotTaken(t *testing.T) {
	m := newMirrored(t, "")
	m.one.Add(registrytest.Fault{Method: "GET", Path: "/manifests/", Do: registrytest.Wrong()})
	if _, err := m.pull(t.Context(), m.ref, Options{}); err != nil {
		t.Fatal(err)
	}
	if m.two.Count("GET", "/manifests/") != 1 || !strings.Contains(m.log.String(), "the host serves content with digest") {
		t.Errorf("the second mirror was not asked, or nothing was logged: %s", m.log)
	}
}

func TestDeadMirrorsCostLittle(t *testing.T) {
	m := newMirrored(t, "")
	hole, refused := "198.51.100.9:80", "198.51.100.8:80"
	m.hosts(t, "far.example", fmt.Sprintf("server = %q\n[host.\"http://%s\"]\n[host.\"http://%s\"]\n", m.origin.URL, hole, refused))
	var dials atomic.Int32
	m.pool.dial = func(ctx context.Context, d *net.Dialer, network, addr string) (net.Conn, error) {
		switch addr {
		case hole:
			dials.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		case refused:
			return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
		}
		return d.DialContext(ctx, network, addr)
	}
	began := time.Now()
	for range 5 {
		if _, err := m.pull(t.Context(), m.ref, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > quickLimits().QuickConnect+300*time.Millisecond {
		t.Errorf("5 pulls past dead mirrors took %s", took)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("the black hole was dialled %d times", n)
	}
}

// TestBlackHoleIsNotDialledAgain: the only host swallows connections; its dial
// timeout is what a call costs, once.
func TestBlackHoleIsNotDialledAgain(t *testing.T) {
	for _, limit := range []time.Duration{300 * time.Millisecond, 10 * time.Second} { // of the header: before and after the dial's
		limits := quickLimits()
		limits.HeaderWait = limit
		h := newHarness(t, limits)
		h.hosts(t, "far.example", "dial_timeout = \"500ms\"")
		var dials atomic.Int32
		h.pool.dial = func(ctx context.Context, d *net.Dialer, _, _ string) (net.Conn, error) {
			dials.Add(1)
			ctx, cancel := context.WithTimeout(ctx, d.Timeout)
			defer cancel()
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
		}
		began := time.Now()
		_, _, err := h.Resolve(t.Context(), imageref.Reference{Host: "far.example", Path: "a", Tag: "b"}, Options{})
		wantKind(t, err, errs.Unavailable)
		if took := time.Since(began); dials.Load() != 1 || took > 2*time.Second {
			t.Errorf("header limit %s: %d dials, %s, %v", limit, dials.Load(), took, err)
		}
	}
}

func TestSlowMirrorIsAskedPatientlyInTheEnd(t *testing.T) {
	m := newMirrored(t, "fallback = false")
	slow := strings.TrimPrefix(m.one.URL, "http://")
	m.two.Add(registrytest.Fault{Do: registrytest.Status(404)})
	m.pool.dial = func(ctx context.Context, d *net.Dialer, network, addr string) (net.Conn, error) {
		if addr == slow {
			if err := sleep(ctx, 2*quickLimits().QuickConnect); err != nil {
				return nil, err
			}
		}
		return d.DialContext(ctx, network, addr)
	}
	if _, _, err := m.Resolve(t.Context(), m.ref, Options{}); err != nil {
		t.Fatal(err)
	}
}

func TestFailureTellsOfAllHosts(t *testing.T) {
	m := newMirrored(t, "")
	m.one.Add(registrytest.Fault{Do: registrytest.Status(503)})
	m.two.Add(registrytest.Fault{Do: registrytest.Drop()})
	m.origin.Add(registrytest.Fault{Do: registrytest.Status(401, "WWW-Authenticate", `Basic realm="x"`)})
	_, _, err := m.Resolve(t.Context(), m.ref, Options{})
	wantKind(t, err, errs.Unauthenticated)
	for _, want := range []string{m.one.Host, m.two.Host, m.origin.Host, "503", "EOF", "401", "no credential for", "far.example/lib/app:v1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	// The registry's word is the kind, whatever mirrors say.
	m = newMirrored(t, "")
	m.one.Add(registrytest.Fault{Do: registrytest.Status(404)})
	m.two.Add(registrytest.Fault{Do: registrytest.Status(404)})
	m.origin.Add(registrytest.Fault{Do: registrytest.Status(503)})
	_, _, err = m.Resolve(t.Context(), m.ref, Options{})
	wantKind(t, err, errs.Unavailable)
	if errors.Is(err, errs.NotFound) {
		t.Errorf("a mirror's 404 shows through: %v", err)
	}
	if n := m.origin.Count("", ""); n != 3 { // five attempts in all, two went to the mirrors
		t.Errorf("the registry was asked %d times", n)
	}
}

func TestNoFallbackMeansNoPacket(t *testing.T) {
	m := newMirrored(t, "fallback = false")
	m.one.Add(registrytest.Fault{Do: registrytest.Status(503)})
	m.two.Add(registrytest.Fault{Do: registrytest.Status(404)})
	_, _, err := m.Resolve(t.Context(), m.ref, Options{})
	wantKind(t, err, errs.NotFound)
	if len(m.origin.Requests()) != 0 {
		t.Error("the registry was asked")
	}
}

func TestCapabilities(t *testing.T) {
	m := newMirrored(t, "")
	m.hosts(t, "far.example", fmt.Sprintf("server = %q\ncapabilities = [\"resolve\"]\n[host.%q]\ncapabilities = [\"pull\"]\n", m.origin.URL, m.one.URL))
	_, r, err := m.Resolve(t.Context(), m.ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.pull(t.Context(), m.ref, Options{}); err != nil {
		t.Fatal(err)
	}
	if m.one.Count("HEAD", "") != 0 || m.origin.Count("GET", "") != 0 {
		t.Errorf("one: %+v, origin: %+v", m.one.Requests(), m.origin.Requests())
	}
	_, err = r.PushBlob(t.Context(), m.img.Config, nil)
	wantKind(t, err, errs.FailedPrecondition)
}

func TestCheckAsksEveryHost(t *testing.T) {
	m := newMirrored(t, "odd = 1")
	m.one.Add(registrytest.Fault{Do: registrytest.Status(404)})
	m.two.Add(registrytest.Fault{Do: registrytest.Drop()})
	rep, err := m.Check(t.Context(), m.ref, Options{})
	if err != nil || len(rep.Hosts) != 3 || !strings.HasSuffix(rep.File, "far.example/hosts.toml") || len(rep.Warnings) != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	for i, want := range []int{404, 0, 200} {
		if h := rep.Hosts[i]; h.Status != want || (h.Err == nil) != (want == 200) || h.Took == 0 || !h.Asked || h.Upstream != (i == 2) {
			t.Errorf("host %d: %+v", i, h)
		}
	}
	if rep.Hosts[2].Found.Digest != m.img.Descriptor.Digest {
		t.Errorf("found %+v", rep.Hosts[2].Found)
	}
	if rep, _ = m.Check(t.Context(), m.ref, Options{}); rep.Hosts[1].Resting == 0 {
		t.Errorf("the host that dropped is well: %+v", rep.Hosts[1])
	}
}
