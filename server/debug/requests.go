package debug

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/base/tally"
)

// Requests counts gRPC requests under the names that dashboards for containerd and
// every other gRPC server know. Its interceptors come first, so that they see the
// codes that clients see.
type Requests struct {
	methods sync.Map // full method to *method: as many as are registered
	times   bool
}

// method is one RPC's numbers.
type method struct {
	kind, service, name string
	started             tally.Counter
	handled             [17]atomic.Uint64 // by code
	received, sent      tally.Counter
	times               tally.Times
}

// NewRequests counts; with times, also how long requests took.
func NewRequests(times bool) *Requests { return &Requests{times: times} }

func (r *Requests) method(full, kind string) *method {
	if m, ok := r.methods.Load(full); ok {
		return m.(*method)
	}
	service, name, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	m, _ := r.methods.LoadOrStore(full, &method{kind: kind, service: service, name: name})
	return m.(*method)
}

func (m *method) done(start time.Time, times bool, err error) {
	code := status.Code(err)
	if int(code) >= len(m.handled) {
		code = codes.Unknown
	}
	m.handled[code].Add(1)
	if times {
		m.times.Since(start)
	}
}

// Unary is an interceptor.
func (r *Requests) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	m := r.method(info.FullMethod, "unary")
	m.started.Add(1)
	m.received.Add(1)
	start := time.Now()
	resp, err := handler(ctx, req)
	m.done(start, r.times, err)
	if err == nil {
		m.sent.Add(1)
	}
	return resp, err
}

// Stream is an interceptor.
func (r *Requests) Stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	kind := "server_stream"
	switch {
	case info.IsClientStream && info.IsServerStream:
		kind = "bidi_stream"
	case info.IsClientStream:
		kind = "client_stream"
	}
	m := r.method(info.FullMethod, kind)
	m.started.Add(1)
	start := time.Now()
	err := handler(srv, counted{s, m})
	m.done(start, r.times, err)
	return err
}

// counted counts a stream's messages.
type counted struct {
	grpc.ServerStream
	m *method
}

func (c counted) SendMsg(m any) error {
	err := c.ServerStream.SendMsg(m)
	if err == nil {
		c.m.sent.Add(1)
	}
	return err
}

func (c counted) RecvMsg(m any) error {
	err := c.ServerStream.RecvMsg(m)
	if err == nil {
		c.m.received.Add(1)
	}
	return err
}

// Collect is a source.
func (r *Requests) Collect(_ context.Context, p *Page) {
	r.methods.Range(func(_, v any) bool {
		m := v.(*method)
		l := []Label{{"grpc_method", m.name}, {"grpc_service", m.service}, {"grpc_type", m.kind}}
		p.Counter("grpc_server_started_total", "Requests that began.", float64(m.started.Value()), l...)
		p.Counter("grpc_server_msg_received_total", "Messages that came in.", float64(m.received.Value()), l...)
		p.Counter("grpc_server_msg_sent_total", "Messages that went out.", float64(m.sent.Value()), l...)
		for code := range m.handled {
			// OK is shown at once, so that a rate of errors has something to be divided by.
			if n := m.handled[code].Load(); n > 0 || code == int(codes.OK) {
				p.Counter("grpc_server_handled_total", "Requests that ended, by code.", float64(n),
					append([]Label{{"grpc_code", codes.Code(code).String()}}, l...)...)
			}
		}
		if r.times {
			p.Histogram("grpc_server_handling_seconds", "How long requests took.", m.times.Read(), l...)
		}
		return true
	})
}
