package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/berthd/berth/base/errs"
)

// acceptManifests is every type that Resolve and FetchManifest understand.
const acceptManifests = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, " +
	"application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*"

// request is one thing to ask of one host.
type request struct {
	method string
	url    *url.URL
	header http.Header
	scopes []string
	// body opens the content from its start, once per try; nil if there is none.
	body   func() (io.ReadCloser, error)
	length int64
	quick  bool // connect within QuickConnect or give up
	// foreign requests go to a URL that an image or a host named: no credential,
	// no configured header travels along, and the guard watches the address.
	foreign bool
}

// channel is the way to e.
func (r *Remote) channel(e *endpoint) channel {
	ch := channel{tls: e.tls, dial: e.dial, proxy: e.proxy, wait: r.c.limits.HeaderWait, debug: r.debug, trace: r.opts.Trace}
	if ch.dial == 0 {
		ch.dial = r.c.cfg.DialTimeout
	}
	return ch
}

// exchange makes one request to e, authenticates as e wants it and follows
// redirects. An answer is returned whatever its status is, except 401, which is
// an error. Errors have no secrets in them.
//
//	e ──► same origin ──► … : authorized each time
//	 └──► elsewhere  ──► … : anonymous from there on, even if it leads back to e
func (r *Remote) exchange(ctx context.Context, e *endpoint, q request) (*http.Response, error) {
	if e.orHTTP && r.c.pool.speaksPlain(e.host) {
		plain := *q.url
		plain.Scheme = "http"
		q.url = &plain
	}
	for hop := 0; ; hop++ {
		resp, err := r.send(ctx, e, q)
		if err != nil {
			return nil, err
		}
		next, err := redirect(q, resp)
		if next == nil && err == nil {
			return resp, nil
		}
		resp.Body.Close()
		if err == nil && hop >= r.c.limits.Redirects {
			err = errs.New(errs.FailedPrecondition, "more than %d redirects", r.c.limits.Redirects)
		}
		if err != nil {
			return nil, err
		}
		q.foreign = q.foreign || urlOrigin(next) != urlOrigin(q.url)
		q.url = next
	}
}

// redirect gives the next URL of a redirected request, nil if resp is final.
func redirect(q request, resp *http.Response) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
		if q.method != http.MethodGet && q.method != http.MethodHead {
			return nil, nil // for the caller a plain refusal
		}
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	return location(q.url, resp)
}

// location resolves and checks a Location header.
func location(from *url.URL, resp *http.Response) (*url.URL, error) {
	raw := resp.Header.Get("Location")
	if raw == "" {
		return nil, errs.New(errs.FailedPrecondition, "status %d without a Location", resp.StatusCode)
	}
	to, err := from.Parse(raw)
	if err != nil {
		return nil, errs.New(errs.FailedPrecondition, "Location %q is not a URL", redactText(clean(raw, 200)))
	}
	to.User, to.Fragment = nil, ""
	if to.Hostname() == "" || to.Scheme != "https" && to.Scheme != "http" || from.Scheme == "https" && to.Scheme != "https" {
		return nil, errs.New(errs.PermissionDenied, "refused to go from %s to %s", redactURL(from), redactURL(to))
	}
	return to, nil
}

// send makes one request to where q.url says, with up to two more for the sake of
// authentication.
func (r *Remote) send(ctx context.Context, e *endpoint, q request) (*http.Response, error) {
	if q.foreign {
		return r.sendOnce(ctx, e, q, authorization{})
	}
	for round := 0; ; round++ {
		auth, err := r.authorize(ctx, e, q.url.Scheme, q.scopes)
		if err != nil {
			return nil, err
		}
		resp, err := r.sendOnce(ctx, e, q, auth)
		var ne *netError
		if errors.As(err, &ne) && e.orHTTP && q.url.Scheme == "https" && isPlainAnswer(err) {
			r.c.pool.notePlain(e.host)
			plain := *q.url
			plain.Scheme = "http"
			*q.url = plain // the caller's copy too: what follows is relative to it
			continue
		}
		if err != nil || resp.StatusCode != http.StatusUnauthorized {
			return resp, err
		}
		again := false
		if round < 3 {
			if again, err = r.challenged(ctx, e, q.url.Scheme, q.scopes, auth, resp); err != nil {
				resp.Body.Close()
				return nil, err
			}
		}
		if !again {
			return nil, statusError(resp)
		}
		resp.Body.Close()
	}
}

// sendOnce makes one HTTP exchange.
func (r *Remote) sendOnce(ctx context.Context, e *endpoint, q request, auth authorization) (*http.Response, error) {
	var body io.ReadCloser
	ch := r.channel(e)
	if q.body != nil {
		var err error
		if body, err = q.body(); err != nil {
			return nil, &finalError{fmt.Errorf("open what is to be sent: %w", err)}
		}
	}
	if q.method == http.MethodPut || q.method == http.MethodPatch {
		ch.wait = r.c.limits.UploadWait // an empty one ends an upload, too
	}
	if q.quick {
		ch.quick = r.c.limits.QuickConnect
	}
	req, err := http.NewRequestWithContext(ctx, q.method, q.url.String(), body)
	if err != nil {
		return nil, errs.New(errs.InvalidArgument, "%s %s: not a request", q.method, redactURL(q.url))
	}
	if body != nil {
		req.ContentLength = q.length
		if q.length == 0 {
			body.Close()
			req.Body = http.NoBody
		}
	}
	for k, v := range q.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", r.c.cfg.UserAgent)
	if q.foreign {
		ch.guard = guard{on: true, from: r.c.pool.reachOf(originOf(q.url.Scheme, e.host))}
		if from := r.c.pool.reachOf(e.origin()); from > ch.guard.from {
			ch.guard.from = from
		}
		if hostname(q.url.Host) != hostname(e.host) {
			ch.tls = e.tls.forTokens()
		}
		return r.c.pool.roundTrip(req, ch)
	}
	for _, h := range []http.Header{r.header, e.header, r.opts.Header} {
		for k, v := range h {
			req.Header[http.CanonicalHeaderKey(k)] = v
		}
	}
	if auth.value != "" {
		req.Header.Set("Authorization", auth.value)
	}
	resp, err := r.c.pool.roundTrip(req, ch)
	if err != nil {
		r.c.health.failed(e.origin(), err, time.Now())
		return nil, err
	}
	r.c.health.answered(e.origin(), resp.StatusCode, time.Now())
	r.warn(e, resp)
	return resp, nil
}

// warn passes on what the registry wants to be read by people (RFC 7234, 5.5, as
// the distribution spec restricts it: code 299).
func (r *Remote) warn(e *endpoint, resp *http.Response) {
	for i, w := range resp.Header.Values("Warning") {
		if text, ok := warningText(w); ok && i < 4 {
			r.c.log.Warn("registry warning", "host", e.host, "ref", r.ref.String(), "text", text)
		}
	}
}

func warningText(v string) (string, bool) {
	if len(v) > 1024 || len(v) < len(`299 - ""`) || v[:len(`299 - "`)] != `299 - "` {
		return "", false
	}
	text := v[len(`299 - "`):]
	if text[len(text)-1] != '"' {
		return "", false
	}
	return clean(redactText(text[:len(text)-1]), 300), true
}
