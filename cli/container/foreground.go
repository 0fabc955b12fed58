package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/logfile"
	"github.com/berthd/berth/cli/term"
)

// foreground is a user's connection to a container's first process.
//
//	dial (the task is made) → begin (it is started) → finish (it has ended, or the
//	user has left it)
type foreground struct {
	*app
	c        *client.Client
	k        *containersapi.Container
	s        *term.Session
	stdin    bool
	keys     []byte
	sigProxy bool
	remove   bool // at the end
	fresh    bool // attached before the start: the log holds exactly what we get
	back     func()
}

const attachSocket = "attach.sock"

// dial connects before the process is started, so that no output is missed.
func (a *app) dial(ctx context.Context, c *client.Client, k *containersapi.Container, stdin bool, keys string) (*foreground, error) {
	f := &foreground{app: a, c: c, k: k, stdin: stdin, back: func() {}}
	pl, err := c.Places(ctx)
	if err != nil {
		return nil, err
	}
	if f.keys, err = term.ParseKeys(keys); err != nil {
		return nil, err
	}
	if f.s, err = term.Dial(ctx, pl.Bundle(c.Namespace, k.GetID()), attachSocket); err != nil {
		return nil, fmt.Errorf("container %s: %w", client.DisplayName(k), err)
	}
	return f, nil
}

// run copies until the process has ended or the user leaves. start, if set, starts
// the process.
func (f *foreground) run(ctx context.Context, start func() error) (status uint32, detached bool, err error) {
	defer f.s.Close()
	session, cancel := context.WithCancel(ctx)
	defer cancel()
	if f.s.Terminal() {
		if f.back, err = term.Raw(f.In); err != nil {
			return 0, false, err
		}
		defer f.back()
	}
	if start != nil {
		if err := start(); err != nil {
			return 0, false, err
		}
	}
	f.Release() // signals are the container's from here on
	if f.sigProxy {
		defer f.forward(session)()
	}
	signal.Ignore(syscall.SIGPIPE) // who reads our output may leave; the container is to be seen to
	if f.s.Terminal() {
		out, ok := f.Out.(*os.File)
		if ok && term.Is(out) {
			term.FollowSize(session, out, f.s.Resize)
		}
	}
	left := make(chan error, 1)
	if f.stdin && f.s.TakesStdin() {
		var in io.Reader = f.In
		if f.s.Terminal() {
			in = term.Detachable(f.In, f.keys)
		}
		// owner: nobody can interrupt a read of stdin: it ends with the program, or
		// with the session when it writes next.
		go func() { left <- f.s.Input(in) }()
	}
	type end struct {
		status uint32
		err    error
	}
	ended := make(chan end, 1)
	// owner: f.s.Close ends it; run waits for ended below.
	go func() {
		st, err := f.s.Output(f.Out, f.Err)
		ended <- end{st, err}
	}()
	for {
		select {
		case err := <-left:
			if errors.Is(err, term.ErrDetached) {
				f.s.Close()
				<-ended
				return 0, true, nil
			}
			left = nil
		case e := <-ended:
			if errors.Is(e.err, term.ErrCut) {
				e.status, e.err = f.rest(ctx)
			}
			return e.status, false, e.err
		}
	}
}

// forward sends the signals that we get to the container. Three interrupts in a
// row end us, in case that it does not care.
func (f *foreground) forward(ctx context.Context) (stop func()) {
	got := make(chan os.Signal, 16)
	signal.Notify(got)
	signal.Reset(syscall.SIGURG, syscall.SIGCHLD, syscall.SIGPIPE, syscall.SIGWINCH, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGCONT)
	done := make(chan struct{})
	// owner: stop waits for done.
	go func() {
		defer close(done)
		f.forwarding(ctx, got)
	}()
	return func() {
		signal.Stop(got)
		close(got)
		<-done
	}
}

func (f *foreground) forwarding(ctx context.Context, got <-chan os.Signal) {
	interrupts := 0
	for s := range got {
		sig, ok := s.(syscall.Signal)
		if !ok || sig == syscall.SIGURG || sig == syscall.SIGCHLD || sig == syscall.SIGPIPE || sig == syscall.SIGWINCH {
			continue
		}
		if sig == syscall.SIGINT || sig == syscall.SIGTERM {
			if interrupts++; interrupts == 3 {
				f.back()
				if f.remove { // the daemon does it then
					_ = Relabel(ctx, f.c, f.k, map[string]string{client.LabelAutoRemove: "true"})
				}
				fmt.Fprintf(f.Err, "berth: three interrupts: leaving container %s to itself\n", client.DisplayName(f.k))
				os.Exit(128 + int(sig)) // nothing of ours is left to be put down
			}
		}
		if err := kill(ctx, f.c, f.k.GetID(), sig, false); err != nil && !errs.Is(err, errs.NotFound) {
			f.Debugf("signal %s: %v", sig, err)
		}
	}
}

// rest goes on where the shim has cut us off: what a slow reader has missed is in
// the log, as long as that has not been rotated away.
func (f *foreground) rest(ctx context.Context) (uint32, error) {
	path := logPath(f.k)
	if !f.fresh || f.s.Terminal() || path == "" {
		return waitExit(ctx, f.c, f.k.GetID())
	}
	f.Debugf("cut off after %d bytes: going on from the log", f.s.Received)
	ended := make(chan struct{})
	var status uint32
	var werr error
	// owner: it closes ended, for which the reading below waits.
	go func() {
		defer close(ended)
		status, werr = f.settled(ctx)
	}()
	skip := f.s.Received
	err := logfile.Read(ctx, path, logfile.Options{Tail: -1, Ended: ended}, func(e logfile.Entry) error {
		w, i := f.Out, 0
		if e.Stderr {
			w, i = f.Err, 1
		}
		data := e.Bytes()
		n := min(skip[i], int64(len(data)))
		skip[i] -= n
		_, err := w.Write(data[n:])
		return err
	})
	if err != nil {
		return 0, err
	}
	return status, werr
}

// settled waits until the process has ended and its output is in its log: the shim
// tells attached clients the end only after that.
func (f *foreground) settled(ctx context.Context) (uint32, error) {
	return settled(ctx, f.c, f.k)
}

// settled is the same for any container of ours.
func settled(ctx context.Context, c *client.Client, k *containersapi.Container) (uint32, error) {
	status, err := waitExit(ctx, c, k.GetID())
	if err != nil {
		return status, err
	}
	pl, err := c.Places(ctx)
	if err != nil {
		return status, nil
	}
	if s, err := term.Dial(ctx, pl.Bundle(c.Namespace, k.GetID()), attachSocket); err == nil {
		defer s.Close()
		_, _ = s.Output(io.Discard, io.Discard) // its end is all that matters
	}
	return status, nil
}

// logPath is the file that a container's log label names.
func logPath(k *containersapi.Container) string {
	return pathOfAddress(k.GetLabels()[client.LabelLog])
}
