package stream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/berthd/berth/engine/task"
)

// session is one exec or attach.
type session struct {
	container                  string
	cmd                        []string
	exec                       bool
	tty, stdin, stdout, stderr bool
}

// serve speaks websockets itself, for the newest protocol, and leaves SPDY to the
// library.
func (e *session) serve(s *Server, w http.ResponseWriter, r *http.Request) {
	if wsstream.IsWebSocketRequest(r) {
		e.serveWebsocket(s, w, r)
		return
	}
	run := runner{s: s, e: e}
	o := &remotecommand.Options{Stdin: e.stdin, Stdout: e.stdout, Stderr: e.stderr, TTY: e.tty}
	if e.exec {
		remotecommand.ServeExec(w, r, run, "", "", e.container, e.cmd, o, s.cfg.IdleTimeout, createTime, remotecommand.SupportedStreamingProtocols)
		return
	}
	remotecommand.ServeAttach(w, r, run, "", "", e.container, o, s.cfg.IdleTimeout, createTime, remotecommand.SupportedStreamingProtocols)
}

// streams are what a client has opened; nil is not opened.
type streams struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	sizes          <-chan remotecommand.TerminalSize
}

// run does what the session is for.
func (e *session) run(ctx context.Context, s *Server, st streams) error {
	resize := func(ctx context.Context) (task.Size, bool) {
		select {
		case size, ok := <-st.sizes:
			return task.Size{Width: size.Width, Height: size.Height}, ok
		case <-ctx.Done():
			return task.Size{}, false
		}
	}
	if !e.exec {
		return s.cfg.Pods.Attach(ctx, s.cfg.Namespace, e.container, task.Attachment{Stdin: st.stdin, Stdout: st.stdout, Stderr: st.stderr, Resize: resize})
	}
	status, err := s.cfg.Pods.Exec(ctx, s.cfg.Namespace, e.container, e.cmd, task.Attended{
		Stdin: st.stdin, Stdout: st.stdout, Stderr: st.stderr, Terminal: e.tty, Resize: resize, HangUp: true,
	})
	if err == nil && status != 0 {
		err = exitStatus(status)
	}
	return err
}

// exitStatus is a process's end that was no success, in the form that the library
// makes a status of.
type exitStatus uint32

func (e exitStatus) Error() string {
	return fmt.Sprintf("command terminated with exit code %d", uint32(e))
}
func (e exitStatus) String() string  { return strconv.Itoa(int(e)) }
func (e exitStatus) Exited() bool    { return true }
func (e exitStatus) ExitStatus() int { return int(e) }

// runner is a session as the library calls it.
type runner struct {
	s *Server
	e *session
}

// ExecInContainer runs the session's command.
func (r runner) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, err io.WriteCloser, _ bool, sizes <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return r.e.run(ctx, r.s, r.e.pick(in, out, err, sizes))
}

// AttachContainer attaches to the session's container.
func (r runner) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, err io.WriteCloser, _ bool, sizes <-chan remotecommand.TerminalSize) error {
	return r.e.run(ctx, r.s, r.e.pick(in, out, err, sizes))
}

// pick leaves out what was not asked for: a stream may be there all the same, or be a
// nil of the wrong type.
func (e *session) pick(in io.Reader, out, err io.Writer, sizes <-chan remotecommand.TerminalSize) streams {
	st := streams{sizes: sizes}
	if e.stdin {
		st.stdin = in
	}
	if e.stdout {
		st.stdout = out
	}
	if e.stderr {
		st.stderr = err
	}
	return st
}
