package ttrpc

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/wire"
)

// pair is a connection of which a server has one end.
func pair(t testing.TB) (ours, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
}

// one is a listener with one connection.
type one struct {
	conn atomic.Pointer[os.File]
	done chan struct{}
}

func (o *one) Accept() (*os.File, error) {
	if c := o.conn.Swap(nil); c != nil {
		return c, nil
	}
	<-o.done
	return nil, os.ErrClosed
}

// A peer that sends anything at all gets answers or is cut off; the server lives on,
// and no call of it is left.
func FuzzServer(f *testing.F) {
	req := wire.Request{Service: "s", Method: "Echo", Payload: []byte("hello")}
	frame := finish(req.Append(newFrame()), 1, typeRequest)
	f.Add(frame)
	f.Add(append(frame, frame...))
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := pair(t)
		defer ours.Close()
		calls := atomic.Int64{}
		s := &Server{
			Find: func(service, method string) Handler {
				return func(context.Context, []byte) (wire.Message, error) { calls.Add(1); return wire.Empty{}, nil }
			},
			Panicked: func(trace []byte) { t.Errorf("%s", trace) },
		}
		l := &one{done: make(chan struct{})}
		l.conn.Store(theirs)
		served := make(chan error, 1)
		go func() { served <- s.Serve(context.Background(), l) }()
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		_ = ours.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = ours.Write(data)
		if rc, err := ours.SyscallConn(); err == nil {
			_ = rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
		}
		close(l.done)
		if err := <-served; err != nil {
			t.Error(err)
		}
		s.Close()
		if calls.Load() > int64(len(data)/headerSize) {
			t.Errorf("%d calls came of %d bytes", calls.Load(), len(data))
		}
	})
}
