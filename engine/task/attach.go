package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/berthd/berth/base/attach"
	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/sock"
	"github.com/berthd/berth/store"
)

// Attachment is one more listener to a process that runs anyway. Nil streams are not
// wanted.
type Attachment struct {
	// Stdin's end is the end of the process's stdin only where that is taken once.
	// Whoever gave it must close it after Attach has returned.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         func(context.Context) (Size, bool) // as in Attended
}

// attachTime bounds the connecting to a shim's attach socket.
const attachTime = 5 * time.Second

// Attach joins the streams of a container's first process until it ends, ctx ends, or
// a stream fails. The process is not disturbed in any case. A listener that is too slow
// is cut off by the shim, which is an error of kind ResourceExhausted.
func (t *Tasks) Attach(ctx context.Context, v store.Scoped, cid string, a Attachment) error {
	_, foreign, err := t.foreign(ctx, v.Namespace(), cid)
	if err != nil {
		return err
	}
	path, err := t.AttachSocket(ctx, v, cid, "")
	if err != nil {
		return err
	}
	var lent *lentEnds
	if foreign {
		lent = &lentEnds{t, v, cid}
	}
	conn, err := sock.Dial(path, attachTime)
	if err != nil {
		return fmt.Errorf("attach to task %q: %w", cid, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	err = errors.Join(t.attached(ctx, conn, a, lent), conn.Close())
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && !errors.Is(err, os.ErrClosed):
		return fmt.Errorf("attach to task %q: %w", cid, err)
	}
	return nil
}

// lentEnds does through the shim what a lent logger cannot: it has neither the
// terminal nor the process's end of stdin.
type lentEnds struct {
	t   *Tasks
	v   store.Scoped
	cid string
}

func (l *lentEnds) resize(ctx context.Context, s Size) error {
	return l.t.ResizePty(ctx, l.v, l.cid, "", uint32(s.Width), uint32(s.Height))
}

// attached serves one connection; lent is nil if the shim is ours.
func (t *Tasks) attached(ctx context.Context, conn *os.File, a Attachment, lent *lentEnds) error {
	c := attach.NewClient(conn)
	hello, err := c.Next()
	if err != nil {
		return err
	}
	if hello.Kind != attach.Hello || len(hello.Data) < 2 || hello.Data[0] != attach.Version {
		return errs.New(errs.Internal, "the shim speaks another attach protocol")
	}
	flags := hello.Data[1]
	ctx, cancel := context.WithCancel(ctx)
	sized := make(chan struct{})
	defer func() { cancel(); <-sized }()
	var send sync.Mutex
	// owner: the function that starts it waits for sized.
	go func() {
		defer close(sized)
		for a.Resize != nil && (flags&attach.FlagTerminal != 0 || lent != nil) {
			s, ok := a.Resize(ctx)
			if !ok || ctx.Err() != nil {
				return
			}
			if lent != nil {
				_ = lent.resize(ctx, s) // it may have no terminal
				continue
			}
			send.Lock()
			err := c.Resize(s.Width, s.Height)
			send.Unlock()
			if err != nil {
				return
			}
		}
	}()
	if a.Stdin != nil && flags&attach.FlagStdin != 0 {
		t.wg.Add(1)
		// owner: Close waits for it through wg; the end of Stdin ends it, or of conn.
		go func() {
			defer t.wg.Done()
			feed(c, &send, a.Stdin)
			if lent != nil && flags&attach.FlagStdinOnce != 0 {
				_ = t.CloseIO(t.life, lent.v, lent.cid, "", true) // it may have ended
			}
		}()
	}
	return listen(c, a)
}

// feed sends stdin to the shim.
func feed(c *attach.Client, send *sync.Mutex, in io.Reader) {
	put := func(fn func() error) bool {
		send.Lock()
		defer send.Unlock()
		return fn() == nil
	}
	if !put(func() error { _, err := c.Write(nil); return err }) {
		return
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 && !put(func() error { _, err := c.Write(buf[:n]); return err }) {
			return
		}
		if err != nil {
			put(c.CloseStdin)
			return
		}
	}
}

// listen hands on the output until the process ends.
func listen(c *attach.Client, a Attachment) error {
	for {
		f, err := c.Next()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errs.New(errs.ResourceExhausted, "the shim ended the connection: the output was read too slowly, or the shim died")
		}
		if err != nil {
			return err
		}
		var to io.Writer
		switch f.Kind {
		case attach.Stdout:
			to = a.Stdout
		case attach.Stderr:
			to = a.Stderr
		case attach.Exit:
			return nil
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(f.Data); err != nil {
			return err
		}
	}
}
