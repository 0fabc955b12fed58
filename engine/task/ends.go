package task

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/host/sock"
)

// ends are the daemon's ends of the streams of one exec, and what the shim is told
// to find the others. A berth-shim is handed the files themselves; any other shim
// finds FIFOs.
type ends struct {
	dir   string      // of FIFOs; "" if the streams are passed
	path  string      // of the socket
	uris  [3]string   // for the shim; "" is /dev/null
	ours  [3]*os.File // not blocking; nil is /dev/null
	held  []*os.File  // FIFOs' other ends, so that neither side waits for the other
	l     *sock.Listener
	conn  *os.File // as long as it is open, the shim lets the exec live
	given chan error
}

// ioDir holds the sockets and FIFOs of running execs.
func (t *Tasks) ioDir() string { return filepath.Join(t.cfg.State, "io") }

func (t *Tasks) openEnds(ctx context.Context, task *Task, execID string, r Attended) (*ends, error) {
	if err := os.MkdirAll(t.ioDir(), 0o700); err != nil {
		return nil, fmt.Errorf("directory of streams: %w", err)
	}
	want := [3]bool{r.Stdin != nil, r.Stdout != nil, r.Stderr != nil && !r.Terminal}
	e := &ends{}
	var err error
	if own(task.row.Runtime) {
		err = e.pass(ctx, filepath.Join(t.ioDir(), execID), want)
	} else {
		e.dir = filepath.Join(t.ioDir(), execID)
		err = e.fifos(want)
	}
	if err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// own reports whether a runtime's shim is berth-shim.
func own(runtime string) bool {
	return runtime == shim.OwnRuntime || filepath.Base(runtime) == "berth-shim"
}

// handTime is how long a shim that has started may take to fetch the streams.
const handTime = 30 * time.Second

// pass makes pipes and waits in a goroutine for the shim to fetch their other ends:
// see shim/stdio/pass.go.
func (e *ends) pass(ctx context.Context, path string, want [3]bool) error {
	var theirs [3]*os.File
	give := func() {
		for _, f := range theirs {
			if f != nil {
				_ = f.Close()
			}
		}
	}
	u := url.URL{Scheme: "pass", Path: path}
	for i, wanted := range want {
		if !wanted {
			continue
		}
		var err error
		if e.ours[i], theirs[i], err = pipe(i != 0); err != nil {
			give()
			return err
		}
		e.uris[i] = u.String()
	}
	if want == [3]bool{} {
		return nil
	}
	var err error
	e.path = path
	if e.l, err = sock.Listen(path); err != nil {
		give()
		return fmt.Errorf("socket of streams: %w", err)
	}
	e.given = make(chan error, 1)
	e.l.SetDeadline(time.Now().Add(handTime))
	stop := context.AfterFunc(ctx, func() { e.l.SetDeadline(time.Now()) })
	// owner: started and close wait for given.
	go func() {
		defer stop()
		defer give()
		e.given <- e.hand(theirs)
	}()
	return nil
}

func (e *ends) hand(theirs [3]*os.File) error {
	conn, err := e.l.Accept()
	if err != nil {
		return fmt.Errorf("the shim does not fetch the streams: %w", err)
	}
	e.conn = conn
	_ = conn.SetWriteDeadline(time.Now().Add(handTime))
	for i, f := range theirs {
		if f == nil {
			continue
		}
		if err := sock.SendFile(conn, []string{"in", "out", "err"}[i], f); err != nil {
			return err
		}
	}
	return nil
}

// pipe makes a pipe of which we keep one end.
func pipe(weRead bool) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	if !weRead {
		fds[0], fds[1] = fds[1], fds[0]
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// fifos makes what every shim understands. Our ends are open before the shim's, and
// we hold the other ends until the process is over: a shim may open them late.
func (e *ends) fifos(want [3]bool) error {
	if err := os.Mkdir(e.dir, 0o700); err != nil {
		return fmt.Errorf("directory of streams: %w", err)
	}
	for i, wanted := range want {
		if !wanted {
			continue
		}
		path := filepath.Join(e.dir, []string{"stdin", "stdout", "stderr"}[i])
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return fmt.Errorf("make FIFO %s: %w", path, err)
		}
		read, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		write, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return errors.Join(err, read.Close())
		}
		ours, other := read, write
		if i == 0 {
			ours, other = write, read
		}
		e.ours[i], e.uris[i] = ours, path
		e.held = append(e.held, other)
	}
	return nil
}

// passed says that a berth-shim has the streams.
func (e *ends) passed() bool { return e.dir == "" }

// started is called when the process runs: the shim has the streams then.
func (e *ends) started() error {
	if e.given == nil {
		return nil
	}
	err := <-e.given
	e.given = nil
	e.stopListening()
	return err
}

// exited lets the streams end: the process has.
func (e *ends) exited() {
	for _, f := range e.held {
		_ = f.Close()
	}
	e.held = nil
}

func (e *ends) stopListening() {
	if e.l != nil {
		e.l.Close()
		_ = os.Remove(e.path)
		e.l = nil
	}
}

// close gives everything up. An exec that still runs is ended by its shim.
func (e *ends) close() {
	if e.given != nil {
		e.l.SetDeadline(time.Now())
		<-e.given
	}
	e.stopListening()
	e.exited()
	for _, f := range append(e.ours[:], e.conn) {
		if f != nil {
			_ = f.Close()
		}
	}
	if e.dir != "" {
		_ = os.RemoveAll(e.dir)
	}
}
