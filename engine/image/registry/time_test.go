package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"math/big"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

func TestHealthRestsLongerEachTime(t *testing.T) {
	h := newHealth()
	now := time.Unix(1000, 0)
	dead := &netError{err: errors.New("refused"), connect: true}
	for _, want := range []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, maxRest, maxRest} {
		h.failed("o", dead, now)
		h.failed("o", dead, now) // the same outage, seen by another request
		if got := h.rests("o", now).Sub(now); got != want {
			t.Errorf("rests %s, want %s", got, want)
		}
		now = now.Add(want)
		if !h.rests("o", now).IsZero() {
			t.Error("rests on")
		}
	}
	h.answered("o", 503, now)
	if h.rests("o", now).IsZero() {
		t.Error("503 is no failure")
	}
	h.answered("o", 404, now)
	if !h.rests("o", now).IsZero() {
		t.Error("an answer does not heal")
	}
	h.failed("o", &netError{err: context.Canceled}, now)
	h.failed("o", errors.New("not the network"), now)
	if !h.rests("o", now).IsZero() {
		t.Error("what the caller did counts against the host")
	}
}

func TestPause(t *testing.T) {
	r := &Remote{c: New(Config{})}
	status := func(wait time.Duration) error { return &StatusError{Code: 429, Wait: wait} }
	for n, base := range []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond} {
		if got, ok := r.pause(io.EOF, n); !ok || got < base || got > base*3/2+1 {
			t.Errorf("repetition %d after %s", n, got)
		}
	}
	if got, ok := r.pause(status(20*time.Second), 0); !ok || got != 20*time.Second {
		t.Errorf("20 s: %s", got)
	}
	if _, ok := r.pause(status(31*time.Second), 0); ok {
		t.Error("waits for longer than the limit")
	}
	if got, _ := r.pause(io.EOF, 1000); got > 30*time.Second {
		t.Errorf("the thousandth after %s", got)
	}
}

// TestWatchDefaults runs the default limits in synthetic time.
func TestWatchDefaults(t *testing.T) {
	for name, tc := range map[string]struct {
		bytes int
		every time.Duration
		slow  bool // SlowRate counts
		want  error
		at    time.Duration
	}{
		"silence":          {bytes: 0, every: time.Hour, want: errStall, at: 30 * time.Second},
		"a byte a second":  {bytes: 1, every: time.Second, want: errDead, at: 30 * time.Second},
		"1 kB a second":    {bytes: 1000, every: time.Second, slow: true, want: errSlow, at: 30 * time.Second},
		"1 kB, tolerated":  {bytes: 1000, every: time.Second},
		"100 kB a second":  {bytes: 100_000, every: time.Second, slow: true},
		"long pauses":      {bytes: 1 << 20, every: 29 * time.Second, slow: true},
		"too long a pause": {bytes: 1 << 20, every: 31 * time.Second, slow: true, want: errStall, at: 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l Limits
				l.fill()
				ctx, cancel := context.WithCancelCause(t.Context())
				w := newWatch(l, cancel)
				defer w.stop()
				if tc.slow {
					w.slow = l.SlowRate
				}
				body := &paced{ctx: ctx, n: tc.bytes, every: tc.every}
				began := time.Now()
				for time.Since(began) < 10*time.Minute {
					if _, err := w.read(body, make([]byte, 2<<20)); err != nil {
						break
					}
				}
				if took := time.Since(began); !errors.Is(context.Cause(ctx), tc.want) || tc.want != nil && took != tc.at {
					t.Errorf("after %s: %v, want %v", took, context.Cause(ctx), tc.want)
				}
				cancel(nil)
			})
		})
	}
}

// paced gives n bytes in every interval.
type paced struct {
	ctx   context.Context
	n     int
	every time.Duration
}

func (p *paced) Read(b []byte) (int, error) {
	if err := sleep(p.ctx, p.every); err != nil {
		return 0, err
	}
	return min(p.n, len(b)), nil
}

func TestRetryAfter(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"": 0, "0": 0, "-5": 0, "7": 7 * time.Second, "x": 0, "1000000000": 1e9 * time.Second, "99999999999999999999": 0, "9223372036854775807": (1 << 31) * time.Second,
		time.Now().Add(-time.Hour).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"): 0,
	} {
		if got := retryAfter(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	soon := retryAfter(time.Now().Add(time.Minute).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"))
	if soon < 50*time.Second || soon > time.Minute {
		t.Errorf("in a minute: %s", soon)
	}
}

// TestTLSRefusals is R12: old versions and expired certificates, not repeated.
func TestTLSRefusals(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, c *tls.Config){
		"tls 1.1": func(_ *testing.T, c *tls.Config) { c.MaxVersion, c.MinVersion = tls.VersionTLS11, tls.VersionTLS10 },
		"expired": func(t *testing.T, c *tls.Config) { c.Certificates = []tls.Certificate{expiredCert(t)} },
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(registrytest.Options{})
			srv := httptest.NewUnstartedServer(reg)
			srv.Config.ErrorLog = log.New(io.Discard, "", 0)
			srv.TLS = &tls.Config{}
			change(t, srv.TLS)
			srv.StartTLS()
			defer srv.Close()
			h := newHarness(t, quickLimits())
			h.route(map[string]place{"far.example:443": {strings.TrimPrefix(srv.URL, "https://"), "203.0.113.1"}})
			_, _, err := h.Resolve(t.Context(), imageref.Reference{Host: "far.example", Path: "a", Tag: "b"}, Options{})
			wantKind(t, err, errs.Unavailable)
			if len(reg.Requests()) != 0 {
				t.Error("a request was made")
			}
		})
	}
}

func expiredCert(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"far.example"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestTokenRunsOutInTheMiddle is R09, "401 after each 1 MiB", over HTTP/2 too.
func TestTokenRunsOutInTheMiddle(t *testing.T) {
	for _, overTLS := range []bool{false, true} {
		reg, h, img, ref := setup(t, registrytest.Options{Auth: registrytest.Token, Users: users, TLS: overTLS}, 10<<20)
		reg.Add(blobs(registrytest.DropAfter(1 << 20)))
		ctx, cancel := context.WithCancel(t.Context())
		r, err := h.Open(ref, Options{Credentials: login("ann", "s3cret-pass")})
		if err != nil {
			t.Fatal(err)
		}
		b, err := r.FetchBlob(ctx, img.Layers[0], 0)
		if err != nil {
			t.Fatal(err)
		}
		n, err := readAll(readerFunc(func(p []byte) (int, error) {
			reg.ExpireTokens()
			return b.Read(p)
		}), img.Layers[0])
		b.Close()
		cancel()
		if err != nil || b.Reopened() < 9 {
			t.Errorf("tls %t: %d bytes, reopened %d times, %v", overTLS, n, b.Reopened(), err)
		}
		if n := reg.Count("POST", "/token"); n < 5 {
			t.Errorf("tls %t: only %d tokens were fetched", overTLS, n)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
