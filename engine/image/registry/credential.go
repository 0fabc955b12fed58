package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"time"

	"github.com/berthd/berth/base/errs"
)

// Credential is what a registry host may be shown. At most one of its forms is
// used, in the order of the fields from Header on.
type Credential struct {
	Header        string // a complete Authorization value
	RegistryToken string // a bearer token for the registry itself
	IdentityToken string // a refresh token for the token server; also a Secret without Username
	Username      string // with Secret, for the token server or for Basic
	Secret        string

	Expires time.Time // zero: it does not
	Source  string    // where it is from, for messages: "config.json"; no secret
}

// CredentialFunc gives the credential for a host, as it stands in the URL
// ("registry-1.docker.io" for docker.io). A zero Credential means there is none.
type CredentialFunc func(ctx context.Context, host string) (Credential, error)

func (c Credential) empty() bool {
	return c.Header == "" && c.RegistryToken == "" && c.IdentityToken == "" && c.Secret == "" && c.Username == ""
}

func (c Credential) expired(now time.Time) bool { return !c.Expires.IsZero() && !now.Before(c.Expires) }

// checked normalises c and refuses what could not be sent.
func (c Credential) checked() (Credential, error) {
	if c.Username == "" && c.Secret != "" && c.IdentityToken == "" {
		c.IdentityToken, c.Secret = c.Secret, ""
	}
	for _, v := range []string{c.Header, c.RegistryToken} {
		if !validHeaderValue(v) {
			return Credential{}, errs.New(errs.InvalidArgument, "the credential from %s has control characters in it", cmp.Or(c.Source, "the caller"))
		}
	}
	return c, nil
}

// id tells credentials apart without holding them.
func (c Credential) id() string {
	if c.empty() {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{c.Header, c.RegistryToken, c.IdentityToken, c.Username, c.Secret}, "\x00")))
	return hex.EncodeToString(sum[:])
}

// secrets are the strings that must not show up in a message.
func (c Credential) secrets() []string {
	out := []string{c.Header, c.RegistryToken, c.IdentityToken, c.Secret}
	if c.Secret != "" {
		out = append(out, basicValue(c))
	}
	return out
}

func basicValue(c Credential) string {
	return base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Secret))
}

// credential finds what e's host may be shown: the caller's, else a stored one.
func (r *Remote) credential(ctx context.Context, e *endpoint) (Credential, error) {
	unlock, err := r.asking.Lock(ctx, e.host)
	if err != nil {
		return Credential{}, err
	}
	defer unlock()
	r.mu.Lock()
	c, known := r.creds[e.host]
	r.mu.Unlock()
	if known && !c.expired(time.Now()) {
		return c, nil
	}
	if r.opts.Credentials != nil {
		if c, err = r.opts.Credentials(ctx, e.host); err != nil {
			return Credential{}, errs.New(kindOf(err), "ask for the credential of %s: %w", e.host, err)
		}
		c.Source = cmp.Or(c.Source, "the caller")
	} else {
		c = Credential{}
	}
	if c.empty() {
		c = r.c.stored.lookup(ctx, e.host, r.ref.Path)
	}
	if c, err = c.checked(); err != nil {
		return Credential{}, err
	}
	r.mu.Lock()
	r.creds[e.host] = c
	r.mu.Unlock()
	return c, nil
}

// credentialHint tells a person whose credential was refused, or that there was none.
func (r *Remote) credentialHint(e *endpoint) string {
	r.mu.Lock()
	c, known := r.creds[e.host]
	r.mu.Unlock()
	if problem := r.c.stored.problem(e.host); problem != "" && c.empty() {
		return problem
	}
	switch {
	case !known:
		return "no credential was sent"
	case c.empty():
		return "no credential for " + e.host + ": give one with the pull, or put one into a configured config.json"
	}
	return "the credential from " + c.Source + " does not do for this repository"
}
