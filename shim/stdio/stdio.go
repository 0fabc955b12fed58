// Package stdio connects the streams of one container process with the places that
// a request names. It owns the pipes, the FIFOs, the logger process, the log file,
// the attach socket, and a goroutine for each stream that is copied. It holds no
// buffer while nothing moves, and it never makes the container wait for a log file
// or for an attach client.
package stdio

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/child"
	"github.com/berthd/berth/host/oci"
	"github.com/berthd/berth/shim/crilog"
	"github.com/berthd/berth/shim/wire"
)

// Config describes the streams of one process.
type Config struct {
	wire.Stdio
	Namespace string
	ID        string
	Bundle    string
	AttachAt  string // name of the attach socket in the bundle
	UID, GID  int    // owner of the pipes
	Reaper    *child.Reaper
	Log       func(message string)
	// Gone is told, at most once, that the daemon that handed over the streams has
	// left. It must not wait for the Stdio.
	Gone func()
}

// Stdio is the streams of one process:
//
//	Open → Child, Started → (Resize, CloseStdin, Reopen)* → Exited → Drain → Close
//
// Close is allowed at any time.
type Stdio struct {
	config  Config
	child   oci.Stdio
	logger  *logger
	log     *crilog.Log
	hub     *hub
	passed  *passed
	copiers []*copier
	wg      sync.WaitGroup
	exited  chan struct{}
	once    sync.Once

	mu      sync.Mutex
	stdin   *os.File // our end of the container's stdin, or the terminal's master
	console *os.File
	held    *os.File   // the writing end of the stdin FIFO that keeps it from ending
	files   []*os.File // to be closed at the end
	outs    []output   // until Started
	writers []*os.File // of FIFOs that we read, until Release
	in      *os.File   // the reading end of the stdin FIFO, until Started
	closed  bool
}

// output is a stream that is to be copied: src is nil until the terminal is there.
type output struct {
	src *os.File
	dst sink
}

// Open opens the places and makes the pipes.
func Open(ctx context.Context, c Config) (*Stdio, error) {
	s := &Stdio{config: c, exited: make(chan struct{})}
	err := s.openPassed(ctx)
	if err == nil {
		err = s.openOutputs(ctx)
	}
	if err == nil {
		err = s.openInput()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Child is what the process gets; with a terminal nothing.
func (s *Stdio) Child() oci.Stdio { return s.child }

func (s *Stdio) openOutputs(ctx context.Context) error {
	stdout, err := parsePlace(s.config.Stdout)
	if err != nil {
		return err
	}
	stderr, err := parsePlace(s.config.Stderr)
	if err != nil {
		return err
	}
	if s.config.Terminal {
		stderr = place{}
	}
	if stdout.scheme == "binary" || stdout.scheme == "binary-v2" {
		return s.openLogger(ctx, stdout)
	}
	shared := map[string]*sharedFile{}
	for i, p := range []place{stdout, stderr} {
		if p.scheme == "" {
			continue
		}
		if p.scheme == "pass" {
			s.takeOutput(i)
			continue
		}
		dst, err := s.openSink(ctx, p, []string{"stdout", "stderr"}[i], shared)
		if err != nil {
			return err
		}
		if s.config.Terminal {
			s.outs = append(s.outs, output{dst: dst})
			continue
		}
		ours, theirs, err := pipe(true, s.config.UID, s.config.GID)
		if err != nil {
			return err
		}
		s.files = append(s.files, ours)
		s.outs = append(s.outs, output{ours, dst})
		if i == 0 {
			s.child.Stdout = theirs
		} else {
			s.child.Stderr = theirs
		}
	}
	return nil
}

func (s *Stdio) openSink(ctx context.Context, p place, stream string, shared map[string]*sharedFile) (sink, error) {
	switch p.scheme {
	case "log":
		return s.openLog(p, stream)
	case "fifo", "file":
		if f := shared[p.text]; f != nil {
			f.users++
			return fileSink{f}, nil
		}
		file, err := p.openOutput(ctx)
		if err != nil {
			return nil, err
		}
		s.files = append(s.files, file)
		shared[p.text] = &sharedFile{file: file, users: 1}
		return fileSink{shared[p.text]}, nil
	}
	return nil, errs.New(errs.InvalidArgument, "%s cannot go to %q", stream, p.text)
}

func (s *Stdio) openInput() error {
	p, err := parsePlace(s.config.Stdin)
	if err != nil || p.scheme == "" {
		return err
	}
	switch {
	case p.scheme == "attach" && s.hub == nil:
		return errs.New(errs.InvalidArgument, "stdin from attach clients needs a log as stdout")
	case p.scheme == "attach":
	case p.scheme == "pass":
		s.takeInput()
		return nil
	case p.scheme == "fifo":
		// The other end is held open so that a client that leaves does not end stdin.
		if s.in, err = openFIFO(p.path, unix.O_RDONLY); err != nil {
			return err
		}
		s.files = append(s.files, s.in)
		if s.held, err = openFIFO(p.path, unix.O_WRONLY); err != nil {
			return err
		}
	default:
		return errs.New(errs.InvalidArgument, "stdin cannot come from %q", p.text)
	}
	if s.config.Terminal {
		return nil
	}
	ours, theirs, err := pipe(false, s.config.UID, s.config.GID)
	if err != nil {
		return err
	}
	s.stdin, s.child.Stdin = ours, theirs
	return nil
}

// Started begins to copy. The process has its ends; console is its terminal's
// master, if it has one.
func (s *Stdio) Started(console *os.File) error {
	s.closeChild()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		if console != nil {
			_ = console.Close()
		}
		return os.ErrClosed
	}
	if s.config.Terminal {
		if console == nil {
			return errs.New(errs.FailedPrecondition, "the runtime gave no terminal")
		}
		s.console, s.stdin = console, console
		s.files = append(s.files, console)
		if len(s.outs) == 0 {
			s.outs = append(s.outs, output{dst: nowhere{}}) // else the process blocks on its terminal
		}
	}
	for _, o := range s.outs {
		if o.src == nil {
			o.src = console
		}
		c := newCopier(o.src, o.dst)
		s.copiers = append(s.copiers, c)
		s.wg.Add(1)
		// owner: Close waits for it
		go func() { defer s.wg.Done(); c.run() }()
	}
	s.outs = nil
	if s.in != nil {
		s.wg.Add(1)
		// owner: Close waits for it
		go func() { defer s.wg.Done(); s.feed() }()
	}
	return nil
}

// nowhere is /dev/null.
type nowhere struct{}

func (nowhere) Write([]byte) {}
func (nowhere) Close()       {}

// feed copies the stdin FIFO to the process.
func (s *Stdio) feed() {
	c := newCopier(s.in, stdinSink{s})
	c.run()
}

type stdinSink struct{ s *Stdio }

func (d stdinSink) Write(p []byte) { d.s.writeStdin(p) }
func (d stdinSink) Close()         { d.s.endStdin() }

// writeStdin gives bytes to the process, waiting for it to take them.
func (s *Stdio) writeStdin(p []byte) {
	s.mu.Lock()
	f := s.stdin
	s.mu.Unlock()
	if f != nil {
		_, _ = f.Write(p)
	}
}

// hangUpAfter is how long a process on a terminal may go on after its stdin has
// ended before the terminal is hung up.
const hangUpAfter = 3 * time.Second

// endStdin ends the stdin of the process. A terminal has no end of file: it gets
// the character for it, which ends a shell or a filter; a program that does not
// care, and whose client is gone, is hung up on after a while.
func (s *Stdio) endStdin() {
	s.mu.Lock()
	console, stdin := s.console, s.stdin
	if console == nil {
		s.stdin = nil
	}
	s.mu.Unlock()
	if console == nil {
		if stdin != nil {
			_ = stdin.Close()
		}
		return
	}
	_, _ = console.Write([]byte{4})
	if s.passed != nil {
		return // its client may still want the output; we are told when it leaves
	}
	t := time.NewTimer(hangUpAfter)
	defer t.Stop()
	select {
	case <-s.exited:
	case <-t.C:
		_ = console.Close()
	}
}

// CloseStdin ends stdin as soon as its clients have, too.
func (s *Stdio) CloseStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		_ = s.held.Close()
		s.held = nil
	}
	if s.hub != nil && s.hub.takesStdin && !s.closed {
		s.wg.Add(1)
		// owner: Close waits for it
		go func() { defer s.wg.Done(); s.endStdin() }()
	}
}

// Resize sets the size of the terminal, in characters. Without one it does nothing.
func (s *Stdio) Resize(columns, rows uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.console == nil {
		return nil
	}
	rc, err := s.console.SyscallConn()
	if err != nil {
		return nil
	}
	var sysErr error
	err = rc.Control(func(fd uintptr) {
		sysErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
	})
	if err != nil {
		return nil // closed: the process has ended
	}
	if sysErr != nil {
		return fmt.Errorf("resize terminal: %w", sysErr)
	}
	return nil
}

// Reopen has the log go on in a new file.
func (s *Stdio) Reopen() error {
	if s.log == nil {
		return errs.New(errs.FailedPrecondition, "the output of %s does not go to a log of ours", s.config.ID)
	}
	return s.log.Reopen()
}

// LostLines is the number of log lines that could not be written.
func (s *Stdio) LostLines() uint64 {
	if s.log == nil {
		return 0
	}
	return s.log.Lost()
}

// AttachPath is the socket for attach clients, "" if there is none.
func (s *Stdio) AttachPath() string {
	if s.hub == nil {
		return ""
	}
	return filepath.Join(s.config.Bundle, s.config.AttachAt)
}

// Exited says that the process is dead: nobody reads its stdin any more.
func (s *Stdio) Exited(status uint32) {
	s.once.Do(func() { close(s.exited) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		_ = s.held.Close()
		s.held = nil
	}
	if s.in != nil {
		_ = s.in.Close()
	}
	if s.stdin != nil && s.console == nil {
		_ = s.stdin.Close()
		s.stdin = nil
	}
	if s.hub != nil {
		s.wg.Add(1)
		// owner: Close waits for it
		go func() {
			defer s.wg.Done()
			s.Drain(drainLimit)
			s.hub.end(status)
		}()
	}
}

// drainLimit bounds how long the last output may take to its readers.
const drainLimit = 10 * time.Second

// Drain waits until what the dead process wrote has reached its place.
func (s *Stdio) Drain(limit time.Duration) {
	deadline := time.Now().Add(limit)
	s.mu.Lock()
	copiers := s.copiers
	s.mu.Unlock()
	for _, c := range copiers {
		c.drain(time.Until(deadline))
	}
}

// Close closes everything and waits for the goroutines. A logger program gets time
// to finish. Calling it twice is allowed.
func (s *Stdio) Close() {
	s.once.Do(func() { close(s.exited) })
	s.closeChild()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	if s.passed != nil {
		s.passed.close()
	}
	files := s.files
	for _, f := range []*os.File{s.held, s.stdin} {
		if f != nil {
			files = append(files, f)
		}
	}
	s.mu.Unlock()
	s.Release()
	for _, f := range files {
		_ = f.Close()
	}
	if s.hub != nil {
		s.hub.close()
	}
	s.wg.Wait()
	if s.log != nil {
		s.log.Close()
	}
	if s.logger != nil {
		s.logger.stop()
	}
}

func (s *Stdio) closeChild() {
	for _, f := range []**os.File{&s.child.Stdin, &s.child.Stdout, &s.child.Stderr} {
		if *f != nil {
			_ = (*f).Close()
			*f = nil
		}
	}
}
