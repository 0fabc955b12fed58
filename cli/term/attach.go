package term

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/attach"
	"github.com/berthd/berth/base/errs"
)

// ErrCut ends a session whose shim has cut it off, because it did not read fast
// enough or because the shim is gone. What was received is counted in Session.
var ErrCut = errors.New("the connection to the container's output was cut")

// Session is a connection to a container's attach socket.
type Session struct {
	conn   net.Conn
	client *attach.Client
	flags  byte
	send   sync.Mutex // one sender at a time
	// Received counts the bytes of stdout and of stderr so far.
	Received [2]int64
}

// Dial connects to the socket of that name in a task's bundle. The path may be
// longer than an address can be (108 bytes, unix(7)), so it goes by the directory.
func Dial(ctx context.Context, bundle, name string) (*Session, error) {
	dir, err := unix.Open(bundle, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("attach: %s: %w", bundle, err)
	}
	defer unix.Close(dir)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(fmt.Sprintf("/proc/self/fd/%d", dir), name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.New(errs.FailedPrecondition, "it cannot be attached to: its output does not go to a log of berth's")
	}
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", filepath.Join(bundle, name), err)
	}
	s := &Session{conn: conn, client: attach.NewClient(conn)}
	f, err := s.client.Next()
	if err == nil && (f.Kind != attach.Hello || len(f.Data) < 2 || f.Data[0] != attach.Version) {
		err = fmt.Errorf("the shim greets with %v", f)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("attach to %s: %w", filepath.Join(bundle, name), err)
	}
	s.flags = f.Data[1]
	return s, nil
}

// TakesStdin reports whether the container reads what its clients send.
func (s *Session) TakesStdin() bool { return s.flags&attach.FlagStdin != 0 }

// Terminal reports whether the container has a terminal.
func (s *Session) Terminal() bool { return s.flags&attach.FlagTerminal != 0 }

// Resize sets the size of the container's terminal. A session that has ended does
// not care.
func (s *Session) Resize(columns, rows uint16) {
	s.send.Lock()
	defer s.send.Unlock()
	_ = s.client.Resize(columns, rows)
}

// write sends bytes for stdin, or its end.
func (s *Session) write(p []byte, end bool) error {
	s.send.Lock()
	defer s.send.Unlock()
	if end {
		return s.client.CloseStdin()
	}
	_, err := s.client.Write(p)
	return err
}

// Close ends the session; what blocks in it returns.
func (s *Session) Close() { _ = s.conn.Close() }

// Output writes what the container says until it has ended, and returns its exit
// status; ErrCut if the end was not seen.
func (s *Session) Output(stdout, stderr io.Writer) (uint32, error) {
	for {
		f, err := s.client.Next()
		if err != nil {
			return 0, ErrCut
		}
		switch f.Kind {
		case attach.Stdout:
			s.Received[0] += int64(len(f.Data))
			_, err = stdout.Write(f.Data)
		case attach.Stderr:
			s.Received[1] += int64(len(f.Data))
			_, err = stderr.Write(f.Data)
		case attach.Exit:
			if code, ok := attach.Status(f.Data); ok {
				return code, nil
			}
			return 0, ErrCut
		}
		if err != nil {
			return 0, fmt.Errorf("write output: %w", err)
		}
	}
}

// Input sends what r has, and its end. It returns ErrDetached for the detach keys,
// and nil when r ends or nobody takes it any more.
func (s *Session) Input(r io.Reader) error {
	if err := s.write(nil, false); err != nil { // we mean to write
		return nil
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if werr := s.write(buf[:n], false); werr != nil {
				return nil
			}
		}
		if errors.Is(err, ErrDetached) {
			return err
		}
		if err != nil {
			_ = s.write(nil, true) // nobody takes it if that does not work
			return nil
		}
	}
}
