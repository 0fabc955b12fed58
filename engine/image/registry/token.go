package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/berthd/berth/base/errs"
)

const (
	tokenClient  = "berth" // client_id of the OAuth form
	tokenTime    = 30 * time.Second
	maxToken     = 64 << 10 // bytes; it has to fit into a header
	minTokenLife = time.Minute
	maxTokenLife = time.Hour
)

// fetchToken asks a token server (distribution/spec/auth: token.md, oauth.md).
func (r *Remote) fetchToken(ctx context.Context, e *endpoint, scheme string, key tokenKey, cred Credential) (token, error) {
	s, err := checkRealm(e, scheme, key.realm)
	if err != nil {
		return token{}, err
	}
	if !s.mayBeSent && !cred.Empty() {
		return token{}, errs.New(errs.PermissionDenied, "the registry names the token server %s, in plain http and on another host: no credential is sent there", redactURL(s.url))
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTime)
	defer cancel()
	ch := r.tokenChannel(e, scheme, s)
	a := r.c.auth
	a.mu.Lock()
	noPost := a.noPost[key.realm]
	a.mu.Unlock()

	if cred.IdentityToken != "" || cred.Secret != "" && !noPost {
		t, err := r.postToken(ctx, s, key, cred, ch)
		var status *StatusError
		if err == nil || cred.IdentityToken != "" || !errors.As(err, &status) || status.Code >= 500 || status.Code == http.StatusTooManyRequests {
			return t, err
		}
		if status.Code == http.StatusNotFound || status.Code == http.StatusMethodNotAllowed {
			a.mu.Lock()
			if len(a.noPost) >= maxRemembered {
				clear(a.noPost)
			}
			a.noPost[key.realm] = true
			a.mu.Unlock()
		}
	}
	return r.getToken(ctx, s, key, cred, ch)
}

// tokenChannel is the way to the token server: over connections of its own, each
// checked against where the registry is.
func (r *Remote) tokenChannel(e *endpoint, scheme string, s tokenServer) channel {
	ch := r.channel(e)
	ch.quick = 0
	ch.guard = guard{on: true, from: r.c.pool.reachOf(originOf(scheme, e.host)), strict: true}
	if !s.sameHost {
		ch.tls = e.tls.forTokens()
		// A registry on this machine is not verified either; its neighbour neither.
		if isLoopback(e.host) && isLoopback(s.url.Host) {
			ch.tls = ch.tls.orSkipVerify()
		}
	}
	return ch
}

func (r *Remote) postToken(ctx context.Context, s tokenServer, key tokenKey, cred Credential, ch channel) (token, error) {
	form := url.Values{"service": {key.service}, "client_id": {tokenClient}}
	if key.scopes != "" {
		form.Set("scope", key.scopes)
	}
	if cred.IdentityToken != "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", cred.IdentityToken)
	} else {
		form.Set("grant_type", "password")
		form.Set("username", cred.Username)
		form.Set("password", cred.Secret)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return token{}, errs.New(errs.InvalidArgument, "token server %s: not a URL", redactURL(s.url))
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r.askToken(req, s, cred, ch)
}

func (r *Remote) getToken(ctx context.Context, s tokenServer, key tokenKey, cred Credential, ch channel) (token, error) {
	u := *s.url
	q := u.Query()
	if key.service != "" {
		q.Set("service", key.service)
	}
	q.Del("scope")
	for _, scope := range strings.Fields(key.scopes) {
		q.Add("scope", scope)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return token{}, errs.New(errs.InvalidArgument, "token server %s: not a URL", redactURL(s.url))
	}
	if cred.Username != "" {
		req.Header.Set("Authorization", "Basic "+basicValue(cred))
	}
	return r.askToken(req, s, cred, ch)
}

// askToken sends one request to a token server. A redirect is never followed: it
// would carry the credential, or bring back the body of a host that nobody named.
func (r *Remote) askToken(req *http.Request, s tokenServer, cred Credential, ch channel) (token, error) {
	req.Header.Set("User-Agent", r.c.cfg.UserAgent)
	wrap := func(err error) error {
		return errs.New(kindOf(err), "token server %s: %w", redactURL(s.url), err)
	}
	resp, err := r.c.pool.roundTrip(req, ch)
	if err != nil {
		return token{}, wrap(err)
	}
	if resp.StatusCode != http.StatusOK {
		return token{}, wrap(statusError(resp, secretsOf(cred)...))
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, r.c.limits.Token+1))
	if err != nil {
		return token{}, wrap(&netError{err: err})
	}
	if int64(len(data)) > r.c.limits.Token {
		return token{}, wrap(errs.New(errs.ResourceExhausted, "its answer is larger than %d bytes", r.c.limits.Token))
	}
	t, err := parseToken(data, time.Now())
	if err != nil {
		return token{}, wrap(err)
	}
	return t, nil
}

// parseToken reads a token server's answer; now is when it was asked.
func parseToken(data []byte, now time.Time) (token, error) {
	var doc struct {
		Token       string          `json:"token"`
		AccessToken string          `json:"access_token"`
		ExpiresIn   json.RawMessage `json:"expires_in"` // a number; nonsense is not fatal
	}
	if json.Unmarshal(data, &doc) != nil {
		return token{}, errs.New(errs.Unavailable, "its answer is not JSON with a token")
	}
	value := doc.Token
	if value == "" {
		value = doc.AccessToken
	}
	if value == "" || len(value) > maxToken {
		return token{}, errs.New(errs.Unavailable, "its token has %d bytes: want 1 to %d", len(value), maxToken)
	}
	if strings.ContainsFunc(value, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return token{}, errs.New(errs.Unavailable, "its token has characters that cannot be part of a header")
	}
	life := minTokenLife
	var seconds float64
	if json.Unmarshal(doc.ExpiresIn, &seconds) == nil && seconds > 0 {
		// Both ends are bounded: a minute is the protocol's least, and an hour keeps
		// a token that was revoked from being used for ever.
		life = time.Duration(min(max(seconds, minTokenLife.Seconds()), maxTokenLife.Seconds()) * float64(time.Second))
	}
	return token{value: value, refresh: now.Add(life * 9 / 10)}, nil
}
