package ttrpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/shim/wire"
)

// What callers may use up. They are root on this machine, so this is against
// faults, not foes.
const (
	maxCalls    = 4096     // running at once; a Wait is one
	maxPayload  = 16 << 20 // bytes of all running calls together
	maxConns    = 256
	writeLimit  = 10 * time.Second // a peer that does not read is cut off
	readBufSize = 512
)

// Handler serves one method. The payload is its own. The context ends with the
// caller's time limit and with the connection.
type Handler func(ctx context.Context, payload []byte) (wire.Message, error)

// Server answers calls.
type Server struct {
	// Find returns the handler of a method, nil if there is none.
	Find func(service, method string) Handler
	// Edge is called, without locks, when a call begins, when one has been
	// answered, and when a connection begins or ends; calls and conns are those
	// left. It must not block.
	Edge func(calls, conns int)
	// Panicked is told of a handler that panicked; the call has failed as Internal.
	Panicked func(trace []byte)

	mu      sync.Mutex
	conns   map[*conn]struct{}
	calls   int
	payload int
	closed  bool
	wg      sync.WaitGroup
}

type conn struct {
	server *Server
	file   *os.File
	write  sync.Mutex
}

// Accepter is a listener.
type Accepter interface {
	Accept() (*os.File, error)
}

// Serve answers all connections of l until l is closed.
func (s *Server) Serve(ctx context.Context, l Accepter) error {
	for {
		f, err := l.Accept()
		if err != nil {
			if errors.Is(err, os.ErrClosed) {
				return nil
			}
			return err
		}
		c := &conn{server: s, file: f}
		if !s.add(c) {
			_ = f.Close()
			continue
		}
		// owner: Close waits for it through s.wg
		go c.serve(ctx)
	}
}

// Close ends every connection and waits for the calls that still run.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.file.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	if s.closed || len(s.conns) >= maxConns {
		s.mu.Unlock()
		return false
	}
	if s.conns == nil {
		s.conns = map[*conn]struct{}{}
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	s.edge()
	return true
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	_ = c.file.Close()
	s.edge()
	s.wg.Done()
}

func (s *Server) edge() {
	if s.Edge == nil {
		return
	}
	s.mu.Lock()
	calls, conns := s.calls, len(s.conns)
	s.mu.Unlock()
	s.Edge(calls, conns)
}

// reserve asks for room for one more call.
func (s *Server) reserve(size int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls >= maxCalls || s.payload+size > maxPayload {
		return false
	}
	s.calls++
	s.payload += size
	s.wg.Add(1)
	return true
}

func (s *Server) release(size int) {
	s.mu.Lock()
	s.calls--
	s.payload -= size
	s.mu.Unlock()
	s.edge()
	s.wg.Done()
}

// serve reads requests until the peer leaves or breaks the protocol.
func (c *conn) serve(ctx context.Context) {
	defer c.server.remove(c)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := bufio.NewReaderSize(c.file, readBufSize)
	var buf [headerSize]byte
	var last uint32
	for {
		h, err := readHeader(r, buf[:])
		if err != nil {
			return
		}
		if refusal := c.check(h, &last); refusal != nil {
			// The data is skipped, never held, however long it says it is.
			if _, err := r.Discard(int(h.length)); err != nil || !c.respond(h.stream, nil, refusal) {
				return
			}
			continue
		}
		if h.kind != typeRequest {
			if _, err := r.Discard(int(h.length)); err != nil {
				return
			}
			continue
		}
		if !c.request(ctx, h, r) {
			return
		}
	}
}

// check says why a frame cannot be served.
func (c *conn) check(h header, last *uint32) error {
	switch {
	case h.length > maxData:
		return errs.New(errs.ResourceExhausted, "message of %d bytes is longer than %d", h.length, maxData)
	case h.stream%2 != 1:
		return errs.New(errs.InvalidArgument, "stream %d: a client's streams are odd", h.stream)
	case h.kind == typeData:
		return errs.New(errs.InvalidArgument, "stream %d takes no data", h.stream)
	case h.kind == typeRequest && h.stream <= *last:
		return errs.New(errs.InvalidArgument, "stream %d: a client's streams ascend", h.stream)
	}
	if h.kind == typeRequest {
		*last = h.stream
	}
	return nil
}

// request reads one request and starts its call. It returns false if the
// connection is of no more use.
func (c *conn) request(ctx context.Context, h header, r *bufio.Reader) bool {
	size := int(h.length)
	if !c.server.reserve(size) {
		if _, err := r.Discard(size); err != nil {
			return false
		}
		return c.respond(h.stream, nil, errs.New(errs.ResourceExhausted, "too many calls are running"))
	}
	data, err := readBody(r, size)
	if err != nil {
		c.server.release(size)
		return false
	}
	c.server.edge()
	// owner: Server.Close waits for it through reserve and release
	go func() {
		defer c.server.release(size)
		m, err := c.call(ctx, data)
		c.respond(h.stream, m, err)
	}()
	return true
}

// readBody believes a length only as far as bytes really come.
func readBody(r io.Reader, size int) ([]byte, error) {
	const step = 64 << 10
	data := make([]byte, min(size, step))
	for n := 0; ; {
		m, err := io.ReadFull(r, data[n:])
		if n += m; err != nil || n == size {
			return data, err
		}
		data = append(data, make([]byte, min(size-n, len(data)))...)
	}
}

func (c *conn) call(ctx context.Context, data []byte) (m wire.Message, err error) {
	var req wire.Request
	if err := req.Decode(data); err != nil {
		return nil, errs.New(errs.InvalidArgument, "read request: %v", err)
	}
	h := c.server.Find(req.Service, req.Method)
	if h == nil {
		return nil, errs.New(errs.Unimplemented, "method %s of service %s", req.Method, req.Service)
	}
	if req.TimeoutNano != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.TimeoutNano))
		defer cancel()
	}
	defer func() {
		// One broken call must not take the containers' only parent with it.
		if p := recover(); p != nil {
			if c.server.Panicked != nil {
				c.server.Panicked(fmt.Appendf(nil, "%s: panic: %v\n%s", req.Method, p, debug.Stack()))
			}
			m, err = nil, errs.New(errs.Internal, "%s: panic: %v", req.Method, p)
		}
	}()
	return h(ctx, req.Payload)
}

// respond writes one response. It returns false if the connection is of no more use.
func (c *conn) respond(stream uint32, m wire.Message, err error) bool {
	resp := wire.Response{Status: toStatus(err)}
	if err == nil && m != nil {
		resp.Payload = m.Append(nil)
	}
	frame := resp.Append(newFrame())
	if len(frame)-headerSize > maxData {
		resp = wire.Response{Status: toStatus(errs.New(errs.ResourceExhausted, "answer of %d bytes is longer than %d", len(frame), maxData))}
		frame = resp.Append(newFrame())
	}
	c.write.Lock()
	defer c.write.Unlock()
	_ = c.file.SetWriteDeadline(time.Now().Add(writeLimit))
	if _, err := c.file.Write(finish(frame, stream, typeResponse)); err != nil {
		_ = c.file.Close()
		return false
	}
	return true
}
