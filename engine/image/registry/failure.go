package registry

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/base/errs"
)

// maxErrorBody is how much of an error answer is read, in bytes.
const maxErrorBody = 64 << 10

// StatusError is an answer with a status that was not asked for.
type StatusError struct {
	Code    int
	Message string        // from the answer's body, cleaned; may be ""
	Wait    time.Duration // Retry-After; 0 if none
}

func (e *StatusError) Error() string {
	s := strconv.Itoa(e.Code)
	if t := http.StatusText(e.Code); t != "" {
		s += " " + t
	}
	if e.Message != "" {
		s += " (" + e.Message + ")"
	}
	if e.Wait > 0 {
		s += fmt.Sprintf(", asks to wait %s", e.Wait)
	}
	return s
}

// Unwrap gives the kind that the status means.
func (e *StatusError) Unwrap() error {
	switch e.Code {
	case http.StatusUnauthorized:
		return errs.Unauthenticated
	case http.StatusForbidden:
		return errs.PermissionDenied
	case http.StatusNotFound:
		return errs.NotFound
	case http.StatusRequestedRangeNotSatisfiable:
		return errs.OutOfRange
	case http.StatusBadRequest:
		return errs.InvalidArgument
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return errs.Unavailable
	}
	if e.Code >= 500 {
		return errs.Unavailable
	}
	return errs.FailedPrecondition
}

// statusError reads what is worth knowing from an answer and closes it. What the
// request carried, and further secrets, are taken out: some servers repeat it.
func statusError(resp *http.Response, secrets ...string) *StatusError {
	defer resp.Body.Close()
	e := &StatusError{Code: resp.StatusCode, Wait: retryAfter(resp.Header.Get("Retry-After"))}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &doc) == nil && len(doc.Errors) > 0 {
		m := doc.Errors[0].Code
		if t := doc.Errors[0].Message; t != "" && !strings.EqualFold(t, m) {
			m = strings.TrimPrefix(m+": "+t, ": ")
		}
		e.Message = clean(redactText(clean(m, 8192), append(secrets, sent(resp.Request)...)...), 200)
	}
	return e
}

// retryAfter reads seconds or a date (RFC 9110, 10.2.3); nonsense is 0.
func retryAfter(v string) time.Duration {
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		if n <= 0 {
			return 0
		}
		return time.Duration(min(n, 1<<31)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		if d := time.Until(t).Round(time.Second); d > 0 {
			return d
		}
	}
	return 0
}

// Attempt is one request that did not do.
type Attempt struct {
	Host string        // scheme://host
	Took time.Duration // until it had failed
	Err  error         // without secrets
	Hint string        // what a person can do about it; may be ""
}

func (a Attempt) String() string {
	s := fmt.Sprintf("%s: %v", a.Host, a.Err)
	if a.Hint != "" {
		s += " [" + a.Hint + "]"
	}
	return s
}

// Failure is the error of a call that no host could serve: it tells of each host
// that was asked. Its kind is that of the registry itself if that was asked, else
// of the last host.
type Failure struct {
	Op       string // "resolve docker.io/library/busybox:latest"
	Attempts []Attempt
	kind     error
}

func (f *Failure) Error() string {
	var lines []string
	hosts, times := map[string]bool{}, map[string]int{}
	for _, a := range f.Attempts {
		hosts[a.Host] = true
		if times[a.String()]++; times[a.String()] == 1 {
			lines = append(lines, a.String())
		}
	}
	for i, l := range lines {
		if n := times[l]; n > 1 {
			lines[i] = fmt.Sprintf("%s (%d times)", l, n)
		}
		if len(lines) > 1 {
			lines[i] = fmt.Sprintf("(%d) %s", i+1, lines[i])
		}
	}
	s := f.Op + ": "
	if len(hosts) > 1 {
		s += fmt.Sprintf("%d hosts were asked: ", len(hosts))
	}
	return s + strings.Join(lines, "; ")
}

// Unwrap gives the kind, and the errors of all attempts.
func (f *Failure) Unwrap() []error {
	out := []error{f.kind}
	for _, a := range f.Attempts {
		// Kinds of other hosts' failures must not show through: a mirror's "not
		// found" is not the registry's.
		var s *StatusError
		if !errors.As(a.Err, &s) && errors.Is(kindOf(a.Err), f.kind) {
			out = append(out, a.Err)
		}
	}
	return out
}

// kindOf finds the kind of a failed attempt.
func kindOf(err error) error {
	for _, k := range []error{
		errs.NotFound, errs.Unauthenticated, errs.PermissionDenied, errs.InvalidArgument, errs.DataLoss, errs.OutOfRange,
		errs.ResourceExhausted, errs.Unimplemented, errs.FailedPrecondition,
	} {
		if errors.Is(err, k) {
			return k
		}
	}
	return errs.Unavailable
}

// netError is an exchange that brought no answer.
type netError struct {
	err     error
	connect bool // no connection came about: the host is as good as dead
	slow    bool // only QuickConnect ran out
}

func (e *netError) Error() string { return redactText(clean(e.err.Error(), 400)) }

func (e *netError) Unwrap() []error { return []error{errs.Unavailable, e.err} }

// hint says what a person can do about err of one host.
func (r *Remote) hint(e *endpoint, err error) string {
	var (
		status    *StatusError
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		record    tls.RecordHeaderError
		dns       *net.DNSError
	)
	where := "hosts.toml of " + r.ref.Host
	switch {
	case errors.As(err, &authority):
		return fmt.Sprintf("if this host is right, give its authority as ca = \"FILE\" in the %s", where)
	case errors.As(err, &name):
		return "the certificate is for another name"
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return fmt.Sprintf("it speaks plain http: if that is wanted, write [host.\"http://%s\"] in the %s", e.host, where)
	case errors.As(err, &dns):
		return "the name does not resolve"
	case errors.As(err, &status):
		switch status.Code {
		case http.StatusUnauthorized, http.StatusForbidden:
			return r.credentialHint(e)
		case http.StatusTooManyRequests:
			return "the host limits the rate of requests; credentials or a mirror may raise the limit"
		}
	}
	return ""
}

// finalError says something about the caller's own input: no host can help.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }

func isCertificate(err error) bool {
	var verify *tls.CertificateVerificationError
	return errors.As(err, &verify)
}

func isNoSuchHost(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}
