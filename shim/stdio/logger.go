package stdio

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/child"
)

// How long a logger program may take to end: by itself after the end of its
// input, then after SIGTERM.
const (
	loggerGrace = 500 * time.Millisecond
	loggerTerm  = 12 * time.Second
	loggerReady = time.Minute
)

// logger is a program that takes the output of a process:
//
//	fd 3 stdout   fd 4 stderr   fd 5 to write a byte to, or just close, when ready
type logger struct {
	pid  int
	exit <-chan child.Exit
}

// openLogger starts the program and waits until it is ready. The process writes to
// the program's pipes itself; only a terminal is copied.
func (s *Stdio) openLogger(ctx context.Context, p place) error {
	args, err := p.arguments()
	if err != nil {
		return err
	}
	outRead, errRead, err := s.loggerPipes()
	if err != nil {
		return err
	}
	defer func() { _, _ = outRead.Close(), errRead.Close() }()
	readyRead, readyWrite, err := pipe(true, 0, 0)
	if err != nil {
		return err
	}
	defer func() { _ = readyRead.Close() }()
	pid, exit, err := s.config.Reaper.Start(child.Program{
		Path:  p.path,
		Args:  append([]string{p.path}, args...),
		Env:   []string{"CONTAINER_ID=" + s.config.ID, "CONTAINER_NAMESPACE=" + s.config.Namespace},
		Files: []*os.File{nil, nil, nil, outRead, errRead, readyWrite},
		Group: true,
	})
	_ = readyWrite.Close()
	if err != nil {
		return fmt.Errorf("start logger: %w", err)
	}
	s.logger = &logger{pid, exit}
	if err := awaitReady(ctx, readyRead, p.scheme == "binary-v2"); err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return fmt.Errorf("logger %s: %w", p.path, err)
	}
	return nil
}

// loggerPipes makes the two pipes and returns the logger's ends. The others are
// the process's or, of a terminal's output, ours.
func (s *Stdio) loggerPipes() (stdout, stderr *os.File, err error) {
	errRead, errWrite, err := pipe(true, s.config.UID, s.config.GID)
	if err != nil {
		return nil, nil, err
	}
	block(errRead) // a logger expects plain pipes
	if s.config.Terminal {
		_ = errWrite.Close()
		ours, theirs, err := pipe(false, 0, 0)
		if err != nil {
			_ = errRead.Close()
			return nil, nil, err
		}
		s.files = append(s.files, ours)
		s.outs = append(s.outs, output{dst: fileSink{&sharedFile{file: ours, users: 1}}})
		return theirs, errRead, nil
	}
	s.child.Stderr = errWrite
	outRead, outWrite, err := pipe(true, s.config.UID, s.config.GID)
	if err != nil {
		_ = errRead.Close()
		return nil, nil, err
	}
	block(outRead)
	s.child.Stdout = outWrite
	return outRead, errRead, nil
}

// awaitReady waits for the first byte, or, unless strict, for the end.
func awaitReady(ctx context.Context, ready *os.File, strict bool) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	_ = ready.SetReadDeadline(time.Now().Add(loggerReady))
	var b [1]byte
	n, err := ready.Read(b[:])
	if err != nil && err != io.EOF {
		return fmt.Errorf("wait until it is ready: %w", err)
	}
	if strict && n == 0 {
		return errs.New(errs.FailedPrecondition, "it ended without saying that it is ready")
	}
	return nil
}

// stop waits for the program to end after the end of its input.
func (l *logger) stop() {
	for _, step := range []struct {
		sig   syscall.Signal
		after time.Duration
	}{{syscall.SIGTERM, loggerGrace}, {syscall.SIGKILL, loggerTerm}} {
		t := time.NewTimer(step.after)
		select {
		case <-l.exit:
			t.Stop()
			return
		case <-t.C:
			_ = syscall.Kill(l.pid, step.sig)
		}
	}
	<-l.exit
}

// block makes a file blocking that we only hand on.
func block(f *os.File) {
	if rc, err := f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.SetNonblock(int(fd), false) })
	}
}
