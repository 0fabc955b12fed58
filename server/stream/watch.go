package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// errLeft is the cause of the end of a session whose client is gone.
var errLeft = errors.New("the client has left")

// watch ends a session when its client has left or the server closes. It looks at the
// socket itself: the protocols read only as far as somebody takes what was sent, so a
// client that sends much and leaves would never be missed.
func (s *Server) watch(ctx context.Context, conn net.Conn, cancel context.CancelCauseFunc) {
	t := time.NewTicker(hangUpPeriod)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.life.Done():
			cancel(context.Cause(s.life))
		case <-t.C:
			if !hungUp(conn) {
				continue
			}
			cancel(errLeft)
		}
		if conn != nil {
			_ = conn.Close() // wakes who reads or writes it
		}
		return
	}
}

// hungUp reports whether the other side of a connection has closed it. Half of it is
// all of it: none of the protocols goes on with one direction.
func hungUp(conn net.Conn) bool {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return false
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
	})
	return gone || err != nil
}
