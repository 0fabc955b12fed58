package registry

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"unicode"
)

// Everything that goes into an error, a log line or a debug line and that this
// package did not write itself passes through here first.

var (
	urlUser  = regexp.MustCompile(`://[^/?#\s"'@]*@`)
	urlQuery = regexp.MustCompile(`(://[^?\s"']*|/[^?\s"']*)\?[^\s"']+`)
)

// redactText takes user info and queries out of every URL in s and replaces the
// secrets given.
func redactText(s string, secrets ...string) string {
	for _, secret := range secrets {
		if len(secret) >= 4 { // shorter ones would blank out ordinary words
			s = strings.ReplaceAll(s, secret, "…")
			s = strings.ReplaceAll(s, url.QueryEscape(secret), "…")
		}
	}
	s = urlUser.ReplaceAllString(s, "://…@")
	return urlQuery.ReplaceAllString(s, "$1?…")
}

// sent lists the values in a request's header that may be secrets.
func sent(req *http.Request) []string {
	var out []string
	if req == nil {
		return nil
	}
	for k, values := range req.Header {
		if !knownHeaders[k] {
			out = append(out, values...)
		}
	}
	if user, secret, ok := req.BasicAuth(); ok {
		out = append(out, secret, user+":"+secret)
	}
	if _, value, ok := strings.Cut(req.Header.Get("Authorization"), " "); ok {
		out = append(out, value)
	}
	return out
}

// redactURL is scheme, host and path.
func redactURL(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	s := clean(c.String(), 512)
	if u.RawQuery != "" {
		s += "?…"
	}
	return s
}

// clean makes text from a peer fit for a terminal and a log: one line, no control
// or format characters, at most max bytes.
func clean(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == unicode.ReplacementChar, !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
	if len(s) > max {
		s = strings.ToValidUTF8(s[:max], "") + "…"
	}
	return strings.TrimSpace(s)
}

// validHeaderName and validHeaderValue follow RFC 9110, 5.1 and 5.5.
func validHeaderName(s string) bool {
	return s != "" && strings.Trim(s, "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

func validHeaderValue(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}
