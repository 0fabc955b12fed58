package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/engine/image/registry/registrytest"
)

// pki is an authority with files for hosts.toml.
func pki(t *testing.T, dir string) (pool *x509.CertPool, clientCert, clientKey string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	clientCert, clientKey = filepath.Join(dir, "client.cert"), filepath.Join(dir, "client.key")
	writePEM(t, clientCert, "CERTIFICATE", der)
	writePEM(t, clientKey, "EC PRIVATE KEY", keyDER)
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return pool, clientCert, clientKey
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTLS uses a registry that the client knows as a far one, so that nothing of
// what holds for loopback holds.
func TestTLS(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{TLS: true})
	img := layered(100)
	reg.Push("a/b", "c", img)
	ref := imageref.Reference{Host: "example.com", Path: "a/b", Tag: "c"} // httptest's certificate has this name
	far := func(t *testing.T) *harness {
		h := newHarness(t, quickLimits())
		h.route(map[string]place{"example.com:443": {reg.Host, "203.0.113.1"}, "wrong.test:443": {reg.Host, "203.0.113.1"}})
		return h
	}
	dir := t.TempDir()
	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", reg.Certificate().Raw)

	t.Run("unknown authority", func(t *testing.T) {
		_, _, err := far(t).Resolve(t.Context(), ref, Options{})
		wantKind(t, err, errs.Unavailable)
		if !strings.Contains(err.Error(), "ca = ") || strings.Count(err.Error(), "example.com:") > 2 {
			t.Errorf("no help, or tried again: %v", err)
		}
	})
	t.Run("ca", func(t *testing.T) {
		h := far(t)
		h.hosts(t, "example.com", fmt.Sprintf("ca = %q", filepath.Join(dir, "ca.crt")))
		if _, err := h.pull(t.Context(), ref, Options{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("docker style directory", func(t *testing.T) {
		h := far(t)
		if err := os.Mkdir(filepath.Join(h.dir, "example.com"), 0o755); err != nil {
			t.Fatal(err)
		}
		writePEM(t, filepath.Join(h.dir, "example.com", "ca.crt"), "CERTIFICATE", reg.Certificate().Raw)
		if _, err := h.pull(t.Context(), ref, Options{}); err != nil {
			t.Error(err)
		}
		writePEM(t, filepath.Join(h.dir, "example.com", "x.cert"), "CERTIFICATE", reg.Certificate().Raw)
		if _, err := h.pull(t.Context(), ref, Options{}); !errs.Is(err, errs.FailedPrecondition) {
			t.Errorf("a certificate without its key: %v", err)
		}
	})
	t.Run("skip verify, by call and by file", func(t *testing.T) {
		h := far(t)
		if _, err := h.pull(t.Context(), ref, Options{SkipVerify: true}); err != nil {
			t.Error(err)
		}
		if _, err := h.pull(t.Context(), ref, Options{}); err == nil {
			t.Error("one call's licence was another's too")
		}
		h.hosts(t, "example.com", "skip_verify = true")
		if _, err := h.pull(t.Context(), ref, Options{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("wrong name", func(t *testing.T) {
		h := far(t)
		h.hosts(t, "wrong.test", fmt.Sprintf("ca = %q", filepath.Join(dir, "ca.crt")))
		_, _, err := h.Resolve(t.Context(), imageref.Reference{Host: "wrong.test", Path: "a", Tag: "b"}, Options{})
		if err == nil || !strings.Contains(err.Error(), "another name") {
			t.Errorf("got %v", err)
		}
	})
}

func TestClientCertificate(t *testing.T) {
	dir := t.TempDir()
	pool, cert, key := pki(t, dir)
	reg := registrytest.New(registrytest.Options{})
	reg.Push("a/b", "c", layered(100))
	srv := tlsServer(t, reg, pool)
	host := strings.TrimPrefix(srv.URL, "https://")
	h := newHarness(t, quickLimits())
	ref := imageref.Reference{Host: host, Path: "a/b", Tag: "c"}
	if _, _, err := h.Resolve(t.Context(), ref, Options{}); err == nil {
		t.Error("resolved without a client certificate")
	}
	both := filepath.Join(dir, "both.pem")
	c, _ := os.ReadFile(cert)
	k, _ := os.ReadFile(key)
	if err := os.WriteFile(both, append(c, k...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, client := range []string{fmt.Sprintf("%q", both), fmt.Sprintf("[%q]", both), fmt.Sprintf("[[%q, %q]]", cert, key), fmt.Sprintf("[[%q, \"\"]]", both)} {
		h.hosts(t, host, "skip_verify = true\nclient = "+client)
		if _, _, err := h.Resolve(t.Context(), ref, Options{}); err != nil {
			t.Errorf("client = %s: %v", client, err)
		}
	}
}
