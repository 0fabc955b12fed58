// Package shim launches shim programs and talks to them: berth's own and anyone's,
// by the shim v2 rules of containerd (protocols.md 1.10 and part 5). It knows
// nothing of rows or namespaces' meaning; it owns the connections it made.
package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/base/errs"
)

// Bootstrap is what a shim answers when it is started, and all that is needed to
// find it again.
type Bootstrap struct {
	Version  int    `json:"version"`  // 2: Task v2; 3: Task v3 and the sandbox API
	Address  string `json:"address"`  // unix://PATH or vsock://CID:PORT
	Protocol string `json:"protocol"` // ttrpc or grpc
}

// Conn is a connection to one shim. Its methods may be called concurrently.
type Conn struct {
	boot Bootstrap
	call caller
	mu   sync.Mutex
	v2   bool // the shim said that it does not know Task v3
	done chan struct{}
}

// caller is one of the two transports.
type caller interface {
	call(ctx context.Context, service, method string, req, resp proto.Message) error
	close() error
}

// Connect dials a shim. Done is closed when the connection ends, which for a
// local shim means that it is dead.
func Connect(ctx context.Context, b Bootstrap) (*Conn, error) {
	if b.Version < 2 || b.Version > 3 {
		return nil, errs.New(errs.Unimplemented, "shim at %s speaks version %d, known are 2 and 3", b.Address, b.Version)
	}
	c := &Conn{boot: b, v2: b.Version == 2, done: make(chan struct{})}
	nc, err := dial(ctx, b.Address)
	if err != nil {
		return nil, err
	}
	switch b.Protocol {
	case "", "ttrpc":
		c.call = ttrpcCaller{ttrpc.NewClient(nc, ttrpc.WithOnClose(func() { close(c.done) }))}
	case "grpc":
		c.call, err = dialGRPC(b.Address, nc, c.done)
	default:
		err = errs.New(errs.Unimplemented, "shim at %s speaks %q, known are ttrpc and grpc", b.Address, b.Protocol)
	}
	if err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	return c, nil
}

// Bootstrap is how to find the shim again.
func (c *Conn) Bootstrap() Bootstrap { return c.boot }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close ends the connection; the shim lives on.
func (c *Conn) Close() error { return c.call.close() }

// RemoveDeadSocket removes the socket file of a shim that was killed before it
// could do so itself; one that somebody serves stays.
func RemoveDeadSocket(address string) error {
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok {
		return nil
	}
	nc, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		return nc.Close()
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return errs.Ignore(os.Remove(path), fs.ErrNotExist)
	}
	return nil
}

// dial connects to an address. Abstract sockets are not used: whoever is in the
// same network namespace could reach them (CVE-2020-15257).
func dial(ctx context.Context, address string) (net.Conn, error) {
	scheme, path, ok := strings.Cut(address, "://")
	if !ok {
		scheme, path = "unix", address
	}
	switch scheme {
	case "unix":
		if !strings.HasPrefix(path, "/") {
			return nil, errs.New(errs.InvalidArgument, "shim address %q is not an absolute path", address)
		}
		var d net.Dialer
		nc, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, errs.New(errs.Unavailable, "connect to shim: %w", err)
		}
		return nc, nil
	case "vsock":
		return dialVsock(path)
	}
	return nil, errs.New(errs.Unimplemented, "shim address %q: only unix and vsock are known", address)
}

type ttrpcCaller struct{ c *ttrpc.Client }

func (t ttrpcCaller) call(ctx context.Context, service, method string, req, resp proto.Message) error {
	begin := time.Now()
	err := t.c.Call(ctx, service, method, req, resp)
	if err != nil && ctx.Err() != nil && method != "Wait" {
		return fmt.Errorf("its shim does not answer, for %s: %w", time.Since(begin).Round(time.Millisecond), context.Cause(ctx))
	}
	if errors.Is(err, ttrpc.ErrClosed) {
		return errs.New(errs.Unavailable, "the shim is gone: %w", err)
	}
	return errgrpc.ToNative(err)
}

func (t ttrpcCaller) close() error { return t.c.Close() }

type grpcCaller struct{ c *grpc.ClientConn }

func dialGRPC(address string, nc net.Conn, done chan struct{}) (caller, error) {
	var once sync.Once
	first := nc
	cc, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if first == nil {
				return nil, errs.New(errs.Unavailable, "the shim is gone")
			}
			c := first
			first = nil
			return closeNotifier{c, func() { once.Do(func() { close(done) }) }}, nil
		}))
	return grpcCaller{cc}, err
}

// closeNotifier tells when the transport gives the connection up.
type closeNotifier struct {
	net.Conn
	closed func()
}

func (c closeNotifier) Close() error { c.closed(); return c.Conn.Close() }

func (g grpcCaller) call(ctx context.Context, service, method string, req, resp proto.Message) error {
	if md, ok := ttrpc.GetMetadata(ctx); ok {
		if ns := md["containerd-namespace-ttrpc"]; len(ns) > 0 {
			ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", ns[0])
		}
	}
	return errgrpc.ToNative(g.c.Invoke(ctx, "/"+service+"/"+method, req, resp))
}

func (g grpcCaller) close() error { return g.c.Close() }
