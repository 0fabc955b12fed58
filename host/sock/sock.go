// Package sock gives unix stream sockets as plain files. It exists because package
// net costs a shim a tenth of its memory. It owns no goroutines; every file it
// returns waits in the runtime's poller, and Close wakes up who waits.
package sock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is what fits into sockaddr_un, with its final zero (unix(7)).
const maxPath = 107

// Listener accepts connections from processes of our own user.
type Listener struct {
	file   *os.File
	closed atomic.Bool
}

// Listen makes a socket file with mode 0600. An existing file is an error that
// wraps unix.EADDRINUSE.
func Listen(path string) (*Listener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	// The mode of the unbound socket is the mode of the file that bind makes, so
	// there is no moment at which others may connect.
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = at(path, func(p string) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: p}) })
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &Listener{file: os.NewFile(uintptr(fd), path)}, nil
}

// Inherit takes over a listening socket that our parent left open as fd.
func Inherit(fd int) (*Listener, error) {
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || v == 0 {
		return nil, fmt.Errorf("file descriptor %d is not a listening socket", fd)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("inherit socket: %w", err)
	}
	unix.CloseOnExec(fd)
	return &Listener{file: os.NewFile(uintptr(fd), "listener")}, nil
}

// Path is the file that the socket is bound to, "" if it cannot be told.
func (l *Listener) Path() string {
	var path string
	rc, err := l.file.SyscallConn()
	if err != nil {
		return ""
	}
	_ = rc.Control(func(fd uintptr) {
		sa, err := unix.Getsockname(int(fd))
		if u, ok := sa.(*unix.SockaddrUnix); ok && err == nil {
			path = u.Name
		}
	})
	return path
}

// File is the listening socket, to be handed to a child.
func (l *Listener) File() *os.File { return l.file }

// SetDeadline limits how long Accept waits.
func (l *Listener) SetDeadline(t time.Time) { _ = l.file.SetDeadline(t) }

// Close ends Accept. It leaves the file in the file system.
func (l *Listener) Close() {
	l.closed.Store(true)
	_ = l.file.Close()
}

// Accept waits for the next connection. Connections of other users are dropped
// without a word. After Close it returns os.ErrClosed; when the process has no
// file descriptors left it waits a little and tries again.
func (l *Listener) Accept() (*os.File, error) {
	rc, err := l.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	for {
		fd, sysErr := -1, error(nil)
		err := rc.Read(func(lfd uintptr) bool {
			fd, _, sysErr = unix.Accept4(int(lfd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return !errors.Is(sysErr, unix.EAGAIN) && !errors.Is(sysErr, unix.EINTR) && !errors.Is(sysErr, unix.ECONNABORTED)
		})
		switch {
		case l.closed.Load():
			if fd >= 0 {
				_ = unix.Close(fd)
			}
			return nil, os.ErrClosed
		case err != nil:
			return nil, fmt.Errorf("accept: %w", err)
		case errors.Is(sysErr, unix.EMFILE) || errors.Is(sysErr, unix.ENFILE) || errors.Is(sysErr, unix.ENOMEM) || errors.Is(sysErr, unix.ENOBUFS):
			time.Sleep(10 * time.Millisecond)
		case sysErr != nil:
			return nil, fmt.Errorf("accept: %w", sysErr)
		case !sameUser(fd):
			_ = unix.Close(fd)
		default:
			return os.NewFile(uintptr(fd), "connection"), nil
		}
	}
}

func sameUser(fd int) bool {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && int(cred.Uid) == os.Geteuid()
}

// Dial connects to the socket at path. While the listener's queue is full it
// tries again until the timeout.
func Dial(path string, timeout time.Duration) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	deadline := time.Now().Add(timeout)
	for {
		err = at(path, func(p string) error { return unix.Connect(fd, &unix.SockaddrUnix{Name: p}) })
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("connect to %s: %w", path, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// at calls fn with a name for path that fits into a socket address: a long path
// is reached through its open directory.
func at(path string, fn func(string) error) error {
	if len(path) <= maxPath {
		return fn(path)
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	return fn("/proc/self/fd/" + strconv.Itoa(dir) + "/" + filepath.Base(path))
}

// ReceiveFile takes one file descriptor that a peer sends over conn (SCM_RIGHTS).
// The received file is not blocking.
func ReceiveFile(conn *os.File) (*os.File, error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var name [4096]byte
	oob := make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	var sysErr error
	err = rc.Read(func(fd uintptr) bool {
		n, oobn, _, _, sysErr = unix.Recvmsg(int(fd), name[:], oob, unix.MSG_CMSG_CLOEXEC)
		return sysErr != unix.EAGAIN && sysErr != unix.EINTR
	})
	if err == nil {
		err = sysErr
	}
	if err != nil {
		return nil, fmt.Errorf("receive file descriptor: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("receive file descriptor: peer sent %d control messages", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("receive file descriptor: peer sent none")
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}

// SendFile gives a peer a file descriptor over conn (SCM_RIGHTS), with a name that
// must not be empty. The file stays the caller's to close.
func SendFile(conn *os.File, name string, f *os.File) error {
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	fc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sysErr, sendErr error
	err = fc.Control(func(ffd uintptr) {
		sendErr = rc.Write(func(fd uintptr) bool {
			sysErr = unix.Sendmsg(int(fd), []byte(name), unix.UnixRights(int(ffd)), nil, unix.MSG_NOSIGNAL)
			return sysErr != unix.EAGAIN && sysErr != unix.EINTR
		})
	})
	if err := errors.Join(err, sendErr, sysErr); err != nil {
		return fmt.Errorf("send file descriptor: %w", err)
	}
	return nil
}
