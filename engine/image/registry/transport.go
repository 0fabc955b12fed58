package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"
)

// maxTransports bounds the pool: each is one combination of settings.
const maxTransports = 64

// pool keeps one http.Transport for each combination of settings, so that
// connections are shared by all calls that may share them.
type pool struct {
	cfg  Config
	dial func(ctx context.Context, d *net.Dialer, network, addr string) (net.Conn, error) // replaced in tests

	mu         sync.Mutex
	transports map[transportKey]*http.Transport
	reaches    map[string]reach     // by origin: where its last connection went
	plain      map[string]time.Time // hosts of orHTTP endpoints: when they were found to speak plain http
}

type transportKey struct {
	tls   string
	dial  time.Duration
	proxy string
	guard guard
}

func newPool(cfg Config) *pool {
	return &pool{
		cfg: cfg,
		dial: func(ctx context.Context, d *net.Dialer, n, a string) (net.Conn, error) {
			return d.DialContext(ctx, n, a)
		},
		transports: map[transportKey]*http.Transport{},
		reaches:    map[string]reach{},
		plain:      map[string]time.Time{},
	}
}

func (p *pool) closeIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.transports {
		t.CloseIdleConnections()
	}
}

// channel says how a request may travel.
type channel struct {
	tls   *tlsSettings
	dial  time.Duration
	proxy *url.URL
	guard guard
	quick time.Duration // to get a connection; 0: no limit but dial
	wait  time.Duration // for the answer's header, from the start
	debug *debugLog
	trace bool
}

func (p *pool) proxyFor(ch channel, u *url.URL) (*url.URL, error) {
	if ch.proxy != nil {
		return ch.proxy, nil
	}
	return http.ProxyFromEnvironment(&http.Request{URL: u})
}

func (p *pool) transport(ch channel) *http.Transport {
	key := transportKey{tls: ch.tls.id(), dial: ch.dial, guard: ch.guard}
	if ch.proxy != nil {
		key.proxy = ch.proxy.String()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.transports[key]; t != nil {
		return t
	}
	if len(p.transports) >= maxTransports { // certificates were rotated many times
		for k, t := range p.transports {
			t.CloseIdleConnections()
			delete(p.transports, k)
		}
	}
	dialer := &net.Dialer{Timeout: ch.dial, KeepAlive: 30 * time.Second}
	if ch.guard.on {
		dialer.ControlContext = ch.guard.control
	}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            func(ctx context.Context, n, a string) (net.Conn, error) { return p.dial(ctx, dialer, n, a) },
		TLSClientConfig:        ch.tls.config(),
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConnsPerHost:    8,
		MaxIdleConns:           64,
		IdleConnTimeout:        p.cfg.IdleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: p.cfg.Limits.Header,
		DisableCompression:     true, // digests are of what the registry stores
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}
	if ch.proxy != nil {
		t.Proxy = http.ProxyURL(ch.proxy)
	}
	p.transports[key] = t
	return t
}

var (
	errHeaderWait  = errors.New("no complete answer header in time")
	errSlowConnect = errors.New("no connection in time, another host is asked first")
	errClosed      = errors.New("closed")
)

// roundTrip makes one HTTP exchange. The answer's body must be closed; closing it
// early ends the exchange. Errors are *netError, or the context's own.
func (p *pool) roundTrip(req *http.Request, ch channel) (*http.Response, error) {
	parent := req.Context()
	ctx, cancel := context.WithCancelCause(parent)
	limit := &headerLimit{timer: time.AfterFunc(ch.wait, func() { cancel(errHeaderWait) })}
	defer limit.end()
	gotConn := func() {}
	if ch.quick > 0 {
		quick := time.AfterFunc(ch.quick, func() { cancel(errSlowConnect) })
		gotConn = func() { quick.Stop() }
		defer gotConn()
	}
	proxy, err := p.proxyFor(ch, req.URL)
	if err != nil {
		cancel(errClosed)
		return nil, &netError{err: err, connect: true}
	}
	if ch.guard.on {
		if err := ch.guard.allowsHost(req.URL.Host); err != nil {
			cancel(errClosed)
			return nil, &netError{err: err}
		}
		if proxy != nil { // the dialer would see the proxy's address
			ch.guard = guard{}
		}
	}
	connected := false
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		connected = true
		gotConn()
		if ip, ok := addrOf(info.Conn.RemoteAddr()); ok && proxy == nil {
			p.noteReach(urlOrigin(req.URL), reachOf(ip))
		}
	}}
	ctx = httptrace.WithClientTrace(ctx, trace)
	if ch.debug != nil {
		if ch.trace {
			ctx = httptrace.WithClientTrace(ctx, ch.debug.events(req.URL.Host))
		}
		ch.debug.request(req)
	}
	started := time.Now()
	req = req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &sendBody{ReadCloser: req.Body, limit: limit, limits: p.cfg.Limits}
	}
	resp, err := p.transport(ch).RoundTrip(req)
	if ch.debug != nil {
		ch.debug.answer(req, resp, err, time.Since(started))
	}
	limit.end()
	if err == nil && ctx.Err() != nil { // the limit ran out while the answer came in
		resp.Body.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		cause := context.Cause(ctx)
		cancel(errClosed)
		if parent.Err() != nil {
			return nil, context.Cause(parent)
		}
		if cause != nil {
			err = cause
		}
		return nil, &netError{err: err, connect: !connected, slow: errors.Is(err, errSlowConnect)}
	}
	resp.Body = &cancelBody{ReadCloser: resp.Body, cancel: cancel}
	return resp, nil
}

// cancelBody frees the exchange's context with its body.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *cancelBody) Close() error {
	b.cancel(errClosed)
	return b.ReadCloser.Close()
}

// headerLimit is the time that an answer's header has. It moves while a body is
// sent, and ends with the header: the body may still be read then, if the host
// answered without waiting for all of it.
type headerLimit struct {
	mu    sync.Mutex
	timer *time.Timer
	ended bool
}

func (l *headerLimit) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer.Stop()
}

func (l *headerLimit) resume(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.timer.Reset(d)
	}
}

func (l *headerLimit) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.timer.Stop()
}

// sendBody gives a connection Stall to take what was read, and the host
// UploadWait to answer after the end. Time that the source takes is not the host's.
type sendBody struct {
	io.ReadCloser
	limit  *headerLimit
	limits Limits
}

func (b *sendBody) Read(p []byte) (int, error) {
	b.limit.pause()
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.limit.resume(b.limits.UploadWait)
	} else {
		b.limit.resume(b.limits.Stall)
	}
	return n, err
}

func (p *pool) noteReach(origin string, r reach) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.reaches) > 1024 {
		clear(p.reaches)
	}
	p.reaches[origin] = r
}

func (p *pool) reachOf(origin string) reach {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reaches[origin]
}

// plainMemory is how long a host that speaks no TLS is not asked again whether it does.
const plainMemory = time.Minute

func (p *pool) speaksPlain(host string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.plain[strings.ToLower(host)]
	return ok && time.Since(at) < plainMemory
}

func (p *pool) notePlain(host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.plain) > 1024 {
		clear(p.plain)
	}
	p.plain[strings.ToLower(host)] = time.Now()
}

// isPlainAnswer says whether a TLS handshake failed because the other side does
// not speak TLS at all.
func isPlainAnswer(err error) bool {
	var record tls.RecordHeaderError
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &record)
}
