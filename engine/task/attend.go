package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// Size is that of a terminal, in characters.
type Size struct{ Width, Height uint16 }

// Attended is a process that lives no longer than somebody listens to it. A nil
// stream is /dev/null.
type Attended struct {
	Process store.Any // OCI process
	// Stdin's end, or an error of it, ends the stdin of the process. Whoever gave it
	// must close it after Attend has returned.
	Stdin          io.Reader
	Stdout, Stderr io.Writer // a Write that fails ends the process
	Terminal       bool      // then Stderr is nil
	// Resize, if set, waits for the next size of the terminal; false is the end.
	Resize func(context.Context) (Size, bool)
	// Drain bounds the wait for the last output once the process has ended: its
	// children may still hold the streams. 0 waits for them as long as ctx allows.
	Drain time.Duration
	// HangUp ends the process by SIGHUP, and by SIGKILL only if that does not help;
	// without it by SIGKILL.
	HangUp bool
}

const (
	hangUpTime = 3 * time.Second  // from SIGHUP to SIGKILL
	killTime   = 10 * time.Second // for a killed process to end
	forgetTime = 30 * time.Second // for the shim to forget a process
)

// Attend runs one more process in a container and stays with it to its end:
//
//	Exec ─> streams are handed over ─> Start ─> copy … ─> exit ─> last output ─> forget
//
// When ctx ends first, the process is ended; with it, if the shim is ours, its process
// group. The error then wraps the cause of ctx. A process that ended in time, but
// whose children held its output until ctx ended, is no error.
func (t *Tasks) Attend(ctx context.Context, v store.Scoped, cid string, r Attended) (Exit, error) {
	task, api, err := t.find(ctx, v.Namespace(), cid)
	if err != nil {
		return Exit{}, err
	}
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	a := &attending{tasks: t, v: v, cid: cid, api: api, id: id.New(16), r: r, fail: fail}
	if a.ends, err = t.openEnds(run, task, a.id, r); err != nil {
		return Exit{}, fmt.Errorf("exec in task %q: %w", cid, err)
	}
	defer a.ends.close()
	if err := a.start(run); err != nil {
		return Exit{}, fmt.Errorf("exec in task %q: %w", cid, err)
	}
	exit, err := a.wait(ctx, run)
	if err != nil {
		err = fmt.Errorf("exec in task %q: %w", cid, err)
	}
	return exit, err
}

// attending is one process in the making or running.
type attending struct {
	tasks *Tasks
	v     store.Scoped
	cid   string
	api   shim.Task
	id    string
	r     Attended
	ends  *ends
	pumps []*pump
	fail  context.CancelCauseFunc
}

func (a *attending) start(ctx context.Context) error {
	u := a.ends.uris
	err := a.api.Exec(ctx, ExecRequest{ExecID: a.id, Terminal: a.r.Terminal, Stdin: u[0], Stdout: u[1], Stderr: u[2], Spec: a.r.Process})
	if err != nil {
		return err
	}
	_, err = a.api.Start(ctx, a.id)
	if err == nil {
		err = a.ends.started()
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		// Nobody may ever hear whether it runs: it must not. Closing the streams does
		// the same with our own shim, even before it runs.
		err = errors.Join(err, context.Cause(ctx))
		if !a.ends.passed() {
			short, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
			defer cancel()
			_ = a.signal(short, syscall.SIGKILL)
		}
	}
	a.forget(ctx)
	return err
}

// wait copies until the process is over. outer is the caller's context; ctx ends with
// it, and when a stream fails.
func (a *attending) wait(outer, ctx context.Context) (Exit, error) {
	a.copy(ctx)
	resized := a.followSize(ctx)
	stay, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	ended := a.await(stay)
	var w waited
	late := false
	select {
	case w = <-ended:
	case <-ctx.Done():
		late = true
		w = a.end(ctx, ended)
	}
	a.ends.exited()
	a.drain(outer, ctx, late || w.err != nil)
	cause := context.Cause(ctx)
	a.fail(nil)
	<-resized
	if !a.ends.passed() {
		a.tasks.wg.Add(1)
		// owner: Close waits for it through wg. Stock shims take seconds for it where
		// children hold the streams.
		go func() { defer a.tasks.wg.Done(); a.forget(ctx) }()
	}
	if late {
		return w.exit, errors.Join(cause, w.err)
	}
	return w.exit, w.err
}

// waited is how a process ended.
type waited struct {
	exit Exit
	err  error
}

// await has one call wait for the end, however that comes about.
func (a *attending) await(ctx context.Context) <-chan waited {
	ended := make(chan waited, 1)
	a.tasks.wg.Add(1)
	// owner: Close waits for it through wg; the end of the process ends it, or ctx.
	go func() {
		defer a.tasks.wg.Done()
		exit, err := a.tasks.Wait(ctx, a.v, a.cid, a.id)
		ended <- waited{exit, err}
	}()
	return ended
}

// end makes the process end and waits for that.
func (a *attending) end(ctx context.Context, ended <-chan waited) waited {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hangUpTime+2*killTime)
	defer cancel()
	if a.r.HangUp && a.signal(ctx, syscall.SIGHUP) == nil {
		select {
		case w := <-ended:
			return w
		case <-time.After(hangUpTime):
		}
	}
	if err := errs.Ignore(a.signal(ctx, syscall.SIGKILL), errs.NotFound); err != nil {
		return waited{err: err}
	}
	select {
	case w := <-ended:
		return w
	case <-time.After(killTime):
		return waited{err: errs.New(errs.Unavailable, "it was killed %s ago and still runs: it is stuck in the kernel, or its shim hangs", killTime)}
	}
}

// signal reaches the process group where the shim can, which is ours.
func (a *attending) signal(ctx context.Context, sig syscall.Signal) error {
	return a.api.Kill(ctx, a.id, uint32(sig), a.ends.passed())
}

// forget has the shim forget the process; the end of the container does it, too. Our
// own shim forgets a process that has run when the streams are closed.
func (a *attending) forget(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetTime)
	defer cancel()
	if _, err := a.api.Delete(ctx, a.id); errs.Ignore(err, errs.NotFound) != nil {
		a.tasks.log.Debug("an exec is left to its shim", "task", a.cid, "exec", a.id, "error", err)
	}
}

// copy starts to move the streams.
func (a *attending) copy(ctx context.Context) {
	for i, dst := range []io.Writer{a.r.Stdout, a.r.Stderr} {
		if dst == nil || a.ends.ours[i+1] == nil {
			continue
		}
		p := &pump{src: a.ends.ours[i+1], dst: dst, done: make(chan struct{})}
		a.pumps = append(a.pumps, p)
		a.tasks.wg.Add(1)
		// owner: Close waits for it through wg; drain has it end.
		go func() { defer a.tasks.wg.Done(); p.run(a.fail) }()
	}
	in := a.ends.ours[0]
	if in == nil {
		return
	}
	a.tasks.wg.Add(1)
	// owner: Close waits for it through wg; the end of Stdin ends it, or of the pipe.
	go func() {
		defer a.tasks.wg.Done()
		_, _ = io.Copy(in, a.r.Stdin) // either side may leave at any time
		_ = in.Close()
		if !a.ends.passed() {
			_ = a.api.CloseIO(ctx, a.id, true) // it may have ended
		}
	}()
}

// followSize passes sizes on to the terminal until ctx ends. The channel is closed
// after the last.
func (a *attending) followSize(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	if !a.r.Terminal || a.r.Resize == nil {
		close(done)
		return done
	}
	// owner: wait waits for done.
	go func() {
		defer close(done)
		for {
			s, ok := a.r.Resize(ctx)
			if !ok || ctx.Err() != nil {
				return
			}
			_ = a.api.ResizePty(ctx, a.id, uint32(s.Width), uint32(s.Height)) // it may have ended
		}
	}()
	return done
}

// drain waits for the last output of the ended process; with now, only for what lies
// in the pipes already.
func (a *attending) drain(outer, ctx context.Context, now bool) {
	var limit <-chan time.Time
	if a.r.Drain > 0 {
		t := time.NewTimer(a.r.Drain)
		defer t.Stop()
		limit = t.C
	}
	for _, p := range a.pumps {
		if !now {
			select {
			case <-p.done:
				continue
			case <-limit:
			case <-ctx.Done():
			}
			now = true
		}
		p.finish()
		select {
		case <-p.done:
		case <-time.After(killTime):
			// Its client does not take it; that client's leaving ends the pump.
			if outer.Err() == nil {
				<-p.done
			}
		}
	}
}
