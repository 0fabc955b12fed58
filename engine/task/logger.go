package task

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/attach"
	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/sock"
)

// A shim of somebody else knows neither log: nor attach: addresses. It is given FIFOs,
// and their other ends a logger: berth-shim in another part (shim/logger.go), which
// writes the log and serves attach clients from the bundle, and like a shim outlives
// the daemon. It ends when the shim lets go of the FIFOs.

// lendLogger starts a logger for such a shim and rewrites the request for it. The
// caller calls release when the shim has made the container, or has failed to.
func (t *Tasks) lendLogger(ctx context.Context, task *Task, r *CreateRequest) (release func(), err error) {
	if own(task.row.Runtime) || !strings.HasPrefix(r.Stdout, "log:") {
		return func() {}, nil
	}
	dir := t.bundle(task.key)
	q := url.Values{"log": {r.Stdout}, "dir": {dir}, "namespace": {task.key.ns}, "id": {task.key.id}}
	streams := []*string{&r.Stdout, &r.Stderr}
	names := []string{"stdout", "stderr"}
	if r.Terminal {
		q.Set("tty", "1")
		r.Stderr = ""
		streams, names = streams[:1], names[:1]
	}
	if strings.HasPrefix(r.Stdin, "attach:") {
		q.Set("stdin", r.Stdin)
		streams, names = append(streams, &r.Stdin), append(names, "stdin")
	}
	for i, s := range streams {
		*s = filepath.Join(dir, names[i])
		if err := unix.Mkfifo(*s, 0o600); err != nil {
			return nil, fmt.Errorf("make FIFO %s: %w", *s, err)
		}
	}
	return t.cfg.Launcher.Logger(ctx, q.Encode())
}

// lentSocket is the attach socket of a task whose shim is not ours.
func (t *Tasks) lentSocket(k key) string { return filepath.Join(t.bundle(k), "attach.sock") }

// lentTime is how long the last output of a deleted container may take into its log.
const lentTime = 5 * time.Second

// awaitLent waits until the lent logger of a task, if it has one, has written all.
func (t *Tasks) awaitLent(task *Task) {
	if own(task.row.Runtime) {
		return
	}
	conn, err := sock.Dial(t.lentSocket(task.key), time.Second)
	if err != nil {
		return // there is none, or it has ended
	}
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(lentTime)) != nil {
		return
	}
	c := attach.NewClient(conn)
	for {
		if f, err := c.Next(); err != nil || f.Kind == attach.Exit {
			return
		}
	}
}

// foreign reports whether a task's output, if it has a log, goes through a lent logger.
func (t *Tasks) foreign(ctx context.Context, ns, id string) (*Task, bool, error) {
	task, _, err := t.find(ctx, ns, id)
	return task, err == nil && !own(task.row.Runtime), err
}

// reopenLent has a lent logger go on in a new file.
func (t *Tasks) reopenLent(task *Task) error {
	conn, err := sock.Dial(t.lentSocket(task.key), attachTime)
	if err != nil {
		return errs.New(errs.FailedPrecondition, "its output does not go to a log of ours: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(attachTime)); err != nil {
		return err
	}
	c := attach.NewClient(conn)
	if err := c.Reopen(); err != nil {
		return err
	}
	for {
		f, err := c.Next()
		if err != nil {
			return err
		}
		switch {
		case f.Kind == attach.Exit:
			return errs.New(errs.FailedPrecondition, "the log has ended")
		case f.Kind == attach.Reopened && len(f.Data) > 0:
			return errs.New(errs.Internal, "%s", f.Data)
		case f.Kind == attach.Reopened:
			return nil
		}
	}
}
