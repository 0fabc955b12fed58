package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/sock"
)

// passLimit is how long a daemon may take to hand over the files of a process.
const passLimit = 10 * time.Second

// passed are the files of a process that a daemon hands over, in this order, and
// only those that the request names:
//
//	shim ── connect ──→ daemon
//	shim ←── stdin (reading end), stdout, stderr (writing ends) ── daemon
//	        … the process runs …
//	shim ←── end of the connection ── daemon, if it dies or gives the process up
//
// Without a terminal the process gets the very files: nothing is copied, and what
// it has written when it ends is in the daemon's pipe already.
type passed struct {
	conn  *os.File
	files [3]*os.File
}

// receive takes the files over. Streams that are not passed stay nil.
func receive(ctx context.Context, path string, want [3]bool) (*passed, error) {
	conn, err := sock.Dial(path, passLimit)
	if err != nil {
		return nil, fmt.Errorf("fetch streams: %w", err)
	}
	p := &passed{conn: conn}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(passLimit))
	for i, name := range streamNames {
		if !want[i] {
			continue
		}
		if p.files[i], err = sock.ReceiveFile(conn); err != nil {
			p.close()
			return nil, fmt.Errorf("fetch %s: %w", name, err)
		}
	}
	_ = conn.SetDeadline(time.Time{})
	return p, nil
}

var streamNames = [3]string{"stdin", "stdout", "stderr"}

func (p *passed) close() {
	_ = p.conn.Close()
	for _, f := range p.files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// take gives one of the files away.
func (p *passed) take(i int) *os.File {
	f := p.files[i]
	p.files[i] = nil
	return f
}

// takeForProcess gives one of the files to the process: blocking, as it was made, and
// owned by whom the process may be, so that it can open /dev/stdout and the like.
func (s *Stdio) takeForProcess(i int) *os.File {
	f := s.passed.take(i)
	block(f)
	if s.config.UID != 0 || s.config.GID != 0 {
		if err := f.Chown(s.config.UID, s.config.GID); err != nil {
			s.config.Log(fmt.Sprintf("%s of an exec in %s: %v", streamNames[i], s.config.ID, err))
		}
	}
	return f
}

// watch tells when the daemon has left.
func (p *passed) watch(gone func()) {
	var b [1]byte
	_, err := p.conn.Read(b[:])
	if err == nil || !isClosed(err) {
		gone()
	}
}

func isClosed(err error) bool { return errors.Is(err, os.ErrClosed) }

// openPassed fetches what the request says is passed.
func (s *Stdio) openPassed(ctx context.Context) error {
	path := ""
	var want [3]bool
	for i, text := range []string{s.config.Stdin, s.config.Stdout, s.config.Stderr} {
		p, err := parsePlace(text)
		if err != nil {
			return err
		}
		if p.scheme != "pass" || i == 2 && s.config.Terminal {
			continue
		}
		if path != "" && p.path != path {
			return errs.New(errs.InvalidArgument, "streams are passed at %q and at %q: one place is allowed", path, p.path)
		}
		path, want[i] = p.path, true
	}
	if path == "" {
		return nil
	}
	var err error
	if s.passed, err = receive(ctx, path, want); err != nil {
		return err
	}
	if s.config.Gone != nil {
		s.wg.Add(1)
		// owner: Close waits for it
		go func() { defer s.wg.Done(); s.passed.watch(s.config.Gone) }()
	}
	return nil
}

// takeOutput gives stdout (0) or stderr (1) to the process, or has the terminal's
// output copied to it.
func (s *Stdio) takeOutput(i int) {
	switch {
	case s.config.Terminal:
		f := s.passed.take(i + 1)
		s.files = append(s.files, f)
		s.outs = append(s.outs, output{dst: fileSink{&sharedFile{file: f, users: 1}}})
	case i == 0:
		s.child.Stdout = s.takeForProcess(i + 1)
	default:
		s.child.Stderr = s.takeForProcess(i + 1)
	}
}

// takeInput gives stdin to the process, or has it copied to the terminal.
func (s *Stdio) takeInput() {
	if s.config.Terminal {
		s.in = s.passed.take(0)
		s.files = append(s.files, s.in)
		return
	}
	s.child.Stdin = s.takeForProcess(0)
}
