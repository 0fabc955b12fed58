// Package stream serves the streams of exec, attach and port-forward over HTTP, as the
// CRI wants it: a call of the CRI gives out an address that is good once and for a
// minute, and whoever comes there speaks SPDY or websockets. It owns the listener, the
// addresses it has given out, and the connections. It keeps no goroutine but that
// which accepts, and one for each session's client.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/berthd/berth/engine/task"
)

// Pods does what is asked for: engine/pod.
type Pods interface {
	// Running and Ready complete an id, and refuse what takes no streams now.
	Running(ns, container string) (id string, err error)
	Ready(ns, pod string) (id string, err error)
	Exec(ctx context.Context, ns, container string, cmd []string, a task.Attended) (status uint32, err error)
	Attach(ctx context.Context, ns, container string, a task.Attachment) error
	// PortForward connects a stream with a TCP port of the pod, until both directions
	// have ended or ctx ends. The stream stays the caller's to close.
	PortForward(ctx context.Context, ns, pod string, port int32, stream io.ReadWriteCloser) error
}

// Config says where and for whom.
type Config struct {
	Address     string // host:port; port 0 is any that is free
	TLS         *tls.Config
	IdleTimeout time.Duration // of a session; 0 is four hours
	Namespace   string        // of the pods
	Pods        Pods
	Log         *slog.Logger
}

const (
	defaultIdle  = 4 * time.Hour
	createTime   = 30 * time.Second // for a client to open its streams
	headerTime   = 10 * time.Second // for a client to send its request
	hangUpPeriod = time.Second      // between looks whether a client is still there
)

// Server is one listener.
type Server struct {
	cfg    Config
	l      net.Listener
	base   url.URL
	http   *http.Server
	tokens tokens
	life   context.Context
	end    context.CancelCauseFunc
	wg     sync.WaitGroup // sessions
}

// New opens the listener; Serve answers. The sessions end with ctx.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = defaultIdle
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for exec, attach and port-forward: %w", err)
	}
	quiet()
	s := &Server{cfg: cfg, l: l, base: url.URL{Scheme: "http", Host: l.Addr().String()}}
	if cfg.TLS != nil {
		s.base.Scheme = "https"
	}
	s.life, s.end = context.WithCancelCause(ctx)
	s.http = &http.Server{
		Handler: s, TLSConfig: cfg.TLS, ReadHeaderTimeout: headerTime, MaxHeaderBytes: 64 << 10,
		ErrorLog:    slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		// No HTTP/2: neither protocol can be spoken over it.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	return s, nil
}

// connKey finds the connection of a request: only the server has it to give.
type connKey struct{}

// quiet silences the libraries, which write an error for each client that leaves. What
// matters reaches the client, as its session's end.
var quiet = sync.OnceFunc(func() { klog.SetSlogLogger(slog.New(slog.DiscardHandler)) })

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.l.Addr() }

// Serve answers until Close.
func (s *Server) Serve() error {
	var err error
	if s.cfg.TLS != nil {
		err = s.http.ServeTLS(s.l, "", "")
	} else {
		err = s.http.Serve(s.l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// errClosing is the cause of the end of sessions that the daemon ends.
var errClosing = errors.New("the daemon is stopping")

// Close ends all sessions and waits for them.
func (s *Server) Close() error {
	err := s.http.Close()
	s.end(errClosing)
	s.wg.Wait()
	if cerr := s.l.Close(); !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	return err
}

// ServeHTTP serves one session. Everything that is not an address given out is not
// found: there is nothing to be learned here.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, token, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	var asked request
	if ok {
		asked, ok = s.tokens.take(kind, token)
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	s.wg.Add(1)
	defer s.wg.Done()
	if s.life.Err() != nil {
		http.Error(w, errClosing.Error(), http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	watched := make(chan struct{})
	// owner: this function waits for watched.
	go func() { defer close(watched); s.watch(ctx, conn, cancel) }()
	asked.serve(s, w, r.WithContext(ctx))
	cancel(nil)
	<-watched
}
