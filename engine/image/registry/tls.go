package registry

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"os"

	"github.com/berthd/berth/base/errs"
)

// tlsSettings are what one host's configuration says about TLS. They are not
// changed after they were made; key tells equal ones apart from others.
type tlsSettings struct {
	key     string
	skip    bool
	skipSet bool // the operator decided; calls do not override it
	roots   *x509.CertPool
	certs   []tls.Certificate
}

func (t *tlsSettings) config() *tls.Config {
	if t == nil {
		return &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: t.skip, // only as the operator or the caller said
		RootCAs:            t.roots,
		Certificates:       t.certs,
	}
}

func (t *tlsSettings) id() string {
	if t == nil {
		return ""
	}
	return t.key
}

// orSkipVerify is t with verification off, unless the operator decided that.
func (t *tlsSettings) orSkipVerify() *tlsSettings {
	if t == nil {
		return &tlsSettings{key: "skip", skip: true}
	}
	if t.skipSet || t.skip {
		return t
	}
	c := *t
	c.skip, c.key = true, t.key+"skip"
	return &c
}

// forTokens is what a token server on another host than the registry gets: the
// registry's authorities, but neither its client certificates nor its licence to
// skip verification.
func (t *tlsSettings) forTokens() *tlsSettings {
	if t == nil || t.roots == nil {
		return nil
	}
	return &tlsSettings{key: t.key + "token", roots: t.roots}
}

// loadTLS reads authorities and key pairs from files. A pair without a second
// file has its key in the first.
func loadTLS(cas []string, pairs [][2]string, skip *bool) (*tlsSettings, error) {
	if len(cas) == 0 && len(pairs) == 0 && skip == nil {
		return nil, nil
	}
	t := &tlsSettings{skipSet: skip != nil, skip: skip != nil && *skip}
	sum := sha256.New()
	if len(cas) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, f := range cas {
			pem, err := os.ReadFile(f)
			if err != nil {
				return nil, errs.New(errs.FailedPrecondition, "read ca: %w", err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, errs.New(errs.FailedPrecondition, "read ca %s: no certificate in it", f)
			}
			sum.Write(pem)
		}
		t.roots = pool
	}
	for _, p := range pairs {
		if p[1] == "" {
			p[1] = p[0]
		}
		cert, err := tls.LoadX509KeyPair(p[0], p[1])
		if err != nil {
			return nil, errs.New(errs.FailedPrecondition, "read client certificate %s with key %s: %w", p[0], p[1], err)
		}
		for _, der := range cert.Certificate {
			sum.Write(der)
		}
		t.certs = append(t.certs, cert)
	}
	t.key = hex.EncodeToString(sum.Sum(nil)[:8])
	if t.skip {
		t.key += "skip"
	}
	return t, nil
}
