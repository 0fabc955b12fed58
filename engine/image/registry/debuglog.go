package registry

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sort"
	"strings"
	"sync"
	"time"
)

// debugLog writes what goes over the wire for a person, one line at a time.
// Credentials, cookies and queries are left out.
type debugLog struct {
	mu sync.Mutex
	w  io.Writer
}

func (d *debugLog) printf(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.w, format+"\n", args...)
}

// secretHeaders are shown by name only.
var secretHeaders = map[string]bool{
	"Authorization": true, "Proxy-Authorization": true, "Cookie": true, "Set-Cookie": true, "X-Registry-Auth": true, "X-Auth-Token": true,
}

// knownHeaders may be shown in full; others can hold anything an operator or a
// registry put there.
var knownHeaders = map[string]bool{
	"Accept": true, "Accept-Ranges": true, "Content-Length": true, "Content-Range": true, "Content-Type": true, "Date": true,
	"Docker-Content-Digest": true, "Docker-Distribution-Api-Version": true, "Etag": true, "Range": true, "Retry-After": true,
	"Ratelimit-Limit": true, "Ratelimit-Remaining": true, "Server": true, "User-Agent": true, "Warning": true, "Oci-Filters-Applied": true, "Oci-Subject": true,
}

func (d *debugLog) headers(mark string, h http.Header) {
	names := make([]string, 0, len(h))
	for k := range h {
		names = append(names, k)
	}
	sort.Strings(names)
	for i, k := range names {
		if i == 64 {
			d.printf("%s … %d more", mark, len(names)-i)
			return
		}
		v := clean(redactText(strings.Join(h[k], ", ")), 300)
		if secretHeaders[http.CanonicalHeaderKey(k)] || !knownHeaders[http.CanonicalHeaderKey(k)] {
			v = fmt.Sprintf("(%d bytes)", len(v))
		}
		d.printf("%s %s: %s", mark, clean(k, 80), v)
	}
}

func (d *debugLog) request(req *http.Request) {
	d.printf("> %s %s", req.Method, redactURL(req.URL))
	d.headers(">", req.Header)
}

func (d *debugLog) answer(req *http.Request, resp *http.Response, err error, took time.Duration) {
	if err != nil {
		d.printf("< %s %s: %s (%s)", req.Method, redactURL(req.URL), redactText(clean(err.Error(), 300)), took.Round(time.Microsecond))
		return
	}
	d.printf("< %s %s: %s %s (%s)", req.Method, redactURL(req.URL), resp.Proto, clean(resp.Status, 80), took.Round(time.Microsecond))
	d.headers("<", resp.Header)
}

// events traces what happens below HTTP.
func (d *debugLog) events(host string) *httptrace.ClientTrace {
	start := time.Now()
	at := func(format string, args ...any) {
		d.printf("* %s %s: "+format, append([]any{time.Since(start).Round(time.Microsecond), host}, args...)...)
	}
	outcome := func(err error) string {
		if err != nil {
			return redactText(clean(err.Error(), 200))
		}
		return "done"
	}
	return &httptrace.ClientTrace{
		DNSStart:             func(i httptrace.DNSStartInfo) { at("look up %s", i.Host) },
		DNSDone:              func(i httptrace.DNSDoneInfo) { at("%d addresses, %s", len(i.Addrs), outcome(i.Err)) },
		ConnectStart:         func(_, addr string) { at("connect to %s", addr) },
		ConnectDone:          func(_, addr string, err error) { at("connect to %s: %s", addr, outcome(err)) },
		TLSHandshakeStart:    func() { at("tls handshake") },
		TLSHandshakeDone:     func(s tls.ConnectionState, err error) { at("tls %s: %s", tls.VersionName(s.Version), outcome(err)) },
		GotConn:              func(i httptrace.GotConnInfo) { at("connection to %s, reused %t", i.Conn.RemoteAddr(), i.Reused) },
		WroteRequest:         func(i httptrace.WroteRequestInfo) { at("request sent: %s", outcome(i.Err)) },
		GotFirstResponseByte: func() { at("first byte of the answer") },
	}
}
