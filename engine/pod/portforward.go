package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/netns"
	"github.com/berthd/berth/store"
)

// Ready completes the id of a pod, which must be ready.
func (p *Pods) Ready(ns, id string) (string, error) {
	pod, err := p.Pod(ns, id)
	if err != nil {
		return "", err
	}
	if pod.State != store.PodReady {
		return "", errs.New(errs.FailedPrecondition, "pod %s takes no connections: it is %s", pod.ID, pod.State)
	}
	return pod.ID, nil
}

const (
	dialTime = 30 * time.Second
	// halfTime is how long one direction may go on after the other has ended without
	// anything moving.
	halfTime = time.Minute
)

// PortForward connects a stream with a TCP port of the pod's loopback, first of IPv4,
// then of IPv6, until both directions have ended or ctx ends. The stream's Close must
// end its writing side only: that is how the client is told the end of the pod's.
func (p *Pods) PortForward(ctx context.Context, ns, id string, port int32, stream io.ReadWriteCloser) error {
	id, err := p.Ready(ns, id)
	if err != nil {
		return err
	}
	conn, err := p.dialPod(ctx, id, port)
	if err != nil {
		return fmt.Errorf("port %d of pod %s: %w", port, id, err)
	}
	return p.join(ctx, conn, stream)
}

// dialPod connects from inside the pod's network namespace, or from the host's, if
// the pod has none.
func (p *Pods) dialPod(ctx context.Context, id string, port int32) (*net.TCPConn, error) {
	if port <= 0 || port > 65535 {
		return nil, errs.New(errs.InvalidArgument, "no such port")
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	dial := (&net.Dialer{}).DialContext
	if path := p.cfg.Sandbox.Namespaces(id).Net; path != "" {
		dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			return netns.Dial(ctx, path, network, address)
		}
	}
	text := strconv.Itoa(int(port))
	conn, err := dial(ctx, "tcp4", net.JoinHostPort("127.0.0.1", text))
	if err != nil {
		var err6 error
		if conn, err6 = dial(ctx, "tcp6", net.JoinHostPort("::1", text)); err6 != nil {
			return nil, err // of IPv4: that of IPv6 may be that there is none
		}
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(errs.New(errs.Internal, "%T is no TCP connection", conn), conn.Close())
	}
	return tcp, nil
}

// join copies both ways. conn is closed at the end.
func (p *Pods) join(ctx context.Context, conn *net.TCPConn, stream io.ReadWriteCloser) error {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var moved atomic.Int64 // by the direction into the pod
	in := make(chan error, 1)
	p.wg.Add(1)
	// owner: Close waits for it through wg; its end is that of the stream, which the
	// caller closes, or of conn.
	go func() {
		defer p.wg.Done()
		_, err := io.Copy(&counted{conn, &moved}, stream)
		_ = conn.CloseWrite() // the pod may still answer
		in <- err
	}()
	_, err := io.Copy(stream, conn)
	if err != nil {
		return endOf(ctx, err)
	}
	_ = stream.Close() // the client may still send
	t := time.NewTicker(halfTime)
	defer t.Stop()
	for last := moved.Load(); ; last = moved.Load() {
		select {
		case <-in:
			return nil // the pod had its say; that it did not take all is between the two
		case <-ctx.Done():
			return endOf(ctx, nil)
		case <-t.C:
			if moved.Load() == last {
				return nil
			}
		}
	}
}

// endOf leaves out an error that only says that the end was asked for.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// counted counts what is written.
type counted struct {
	to    io.Writer
	moved *atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.moved.Add(int64(n))
	return n, err
}
