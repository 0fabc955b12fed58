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
	"github.com/berthd/berth/engine/image/registry/authfile"
)

// Credential is what a registry host may be shown.
type Credential = authfile.Credential

// CredentialFunc gives the credential for a host, as it stands in the URL
// ("registry-1.docker.io" for docker.io). A zero Credential means there is none.
type CredentialFunc func(ctx context.Context, host string) (Credential, error)

func expired(c Credential, now time.Time) bool { return !c.Expires.IsZero() && !now.Before(c.Expires) }

// checked normalises c and refuses what could not be sent.
func checked(c Credential) (Credential, error) {
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

// idOf tells credentials apart without holding them.
func idOf(c Credential) string {
	if c.Empty() {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{c.Header, c.RegistryToken, c.IdentityToken, c.Username, c.Secret}, "\x00")))
	return hex.EncodeToString(sum[:])
}

// secretsOf lists what must not show up in a message.
func secretsOf(c Credential) []string {
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
	if known && !expired(c, time.Now()) {
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
	if c.Empty() {
		c = r.c.credentials().Lookup(ctx, e.host, r.ref.Path)
	}
	if c, err = checked(c); err != nil {
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
	if problem := r.c.credentials().Problem(e.host); problem != "" && c.Empty() {
		return problem
	}
	switch {
	case !known:
		return "no credential was sent"
	case c.Empty():
		return "no credential for " + e.host + ": give one with the pull, or put one into a configured config.json"
	}
	return "the credential from " + c.Source + " does not do for this repository"
}
