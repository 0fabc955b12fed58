package shim

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/oci"
	"github.com/berthd/berth/shim/wire"
)

// start starts a created container or an exec.
func (s *Shim) start(ctx context.Context, r *wire.Process) (uint32, error) {
	c, err := s.get(r.ID)
	if err != nil {
		return 0, err
	}
	if r.ExecID != "" {
		p, err := c.process(r.ExecID)
		if err != nil {
			return 0, err
		}
		return c.startExec(ctx, p)
	}
	if err := c.lock(ctx); err != nil {
		return 0, err
	}
	defer c.unlock()
	pid, err := c.startInit(ctx)
	return uint32(pid), err
}

// stuckStart is how long a runtime may take to end its start after the process it
// was to start is dead.
const stuckStart = 10 * time.Second

// startInit lets the first process go on; the container's turn is taken. It does
// not stop when the caller leaves: a container that is half started helps nobody.
func (c *container) startInit(ctx context.Context) (int, error) {
	c.mu.Lock()
	if c.init.status != wire.Created || c.init.dead || c.deleted {
		status := c.init.status
		c.mu.Unlock()
		return 0, errs.New(errs.FailedPrecondition, "container %s cannot be started: it is %s", c.id, word(status))
	}
	c.init.held = true
	c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer c.init.release()
	if c.restore != "" {
		return c.startRestored(ctx)
	}
	stop := c.whenDead(func() { time.AfterFunc(stuckStart, cancel) })
	err := c.runtime.Start(ctx, c.id, c.bundle)
	stop()
	if err != nil {
		return 0, fmt.Errorf("start container %s: %w", c.id, err)
	}
	c.mu.Lock()
	pid := c.init.pid
	c.mu.Unlock()
	c.running(pid)
	return pid, nil
}

// whenDead calls fn once the first process is dead, unless it is stopped before.
func (c *container) whenDead(fn func()) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.init.onDeath = fn
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.init.onDeath = nil
	}
}

// running marks the container started, tells it, and lets its exit be told.
func (c *container) running(pid int) {
	c.mu.Lock()
	c.init.status = wire.Running
	c.mu.Unlock()
	c.shim.events.push(wire.TaskStarted(c.id, uint32(pid)))
	c.shim.quiet.work()
	c.init.release()
}

func (c *container) startRestored(ctx context.Context) (int, error) {
	release := c.shim.reaper.Hold()
	defer release()
	request := oci.Create{ID: c.id, Bundle: c.bundle, Terminal: c.init.req.Terminal, Stdio: c.init.stdio.Child()}
	started, err := c.runtime.Restore(ctx, request, oci.Checkpoint{
		ImagePath: c.restore, ParentPath: c.parent, WorkPath: c.options.CriuWorkPath,
	})
	if err != nil {
		return 0, fmt.Errorf("restore container %s: %w", c.id, err)
	}
	c.watch(started)
	if err := c.settings(started.Pid).write(c.bundle); err != nil {
		c.shim.log("container " + c.id + ": " + err.Error())
	}
	if err := c.init.begin(started); err != nil {
		return 0, err
	}
	c.running(started.Pid)
	return started.Pid, nil
}

// exec registers one more process.
func (s *Shim) exec(r *wire.Exec) error {
	c, err := s.get(r.ID)
	if err != nil {
		return err
	}
	if err := checkID("exec id", r.ExecID); err != nil {
		return err
	}
	p := newProcess(c, r.ExecID, r.Stdio)
	p.spec = append([]byte(nil), r.Spec.Value...)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.execs[r.ExecID] != nil:
		return errs.New(errs.AlreadyExists, "process %s of container %s exists", r.ExecID, c.id)
	case c.init.status == wire.Stopped || c.init.status == wire.Paused || c.deleted:
		return errs.New(errs.FailedPrecondition, "container %s takes no exec: it is %s", c.id, word(c.init.status))
	}
	c.execs[r.ExecID] = p
	s.events.push(wire.ExecAdded(c.id, r.ExecID))
	return nil
}

// startExec runs a registered exec. If the caller leaves before it runs, it is
// killed as soon as it does, and forgotten.
func (c *container) startExec(ctx context.Context, p *process) (uint32, error) {
	c.mu.Lock()
	switch {
	case c.init.dead || c.init.status != wire.Running && c.init.status != wire.Created:
		c.mu.Unlock()
		return 0, errs.New(errs.FailedPrecondition, "container %s takes no exec: its first process does not run", c.id)
	case p.held || p.status != wire.Created:
		c.mu.Unlock()
		return 0, errs.New(errs.FailedPrecondition, "process %s has been started before", p.execID)
	}
	p.held = true
	c.active++
	c.finished.Add(1)
	c.mu.Unlock()

	type result struct {
		pid int
		err error
	}
	done := make(chan result, 1)
	// owner: Delete of the container waits for it through c.finished
	go func() {
		defer c.finished.Done()
		pid, err := c.runExec(context.WithoutCancel(ctx), p)
		done <- result{pid, err}
	}()
	select {
	case r := <-done:
		return uint32(r.pid), r.err
	case <-ctx.Done():
		c.abandon(p)
		return 0, fmt.Errorf("start process %s: %w", p.execID, context.Cause(ctx))
	}
}

// maxStarting is how many execs of one shim may be on their way at once: each is
// a program that takes megabytes until it runs.
const maxStarting = 16

func (c *container) runExec(ctx context.Context, p *process) (int, error) {
	started, err := c.launch(ctx, p)
	if err != nil {
		c.failExec(p)
		return 0, fmt.Errorf("start process %s of container %s: %w", p.execID, c.id, err)
	}
	c.mu.Lock()
	p.status = wire.Running
	if p.abandoned && p.pidfd != nil {
		_ = syscall.Kill(started, syscall.SIGKILL)
	}
	c.mu.Unlock()
	c.shim.events.push(wire.ExecStarted(c.id, p.execID, uint32(started)))
	c.shim.quiet.work()
	p.release()
	return started, nil
}

func (c *container) launch(ctx context.Context, p *process) (int, error) {
	c.shim.starting <- struct{}{}
	defer func() { <-c.shim.starting }()
	if err := c.openStdio(ctx, p); err != nil {
		return 0, err
	}
	release := c.shim.reaper.Hold()
	defer release()
	started, err := c.runtime.Exec(ctx, oci.Exec{
		ID: c.id, ExecID: p.execID, Bundle: c.bundle, Process: p.spec, Terminal: p.req.Terminal, Stdio: p.stdio.Child(),
	})
	if err != nil {
		return 0, err
	}
	return started.Pid, p.begin(started)
}

// failExec marks an exec that never ran as over: it is not told, for it had not
// been told that it runs, but whoever waits is woken.
func (c *container) failExec(p *process) {
	if p.stdio != nil {
		p.stdio.Close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p.held = false
	p.status, p.exit.Status, p.exit.At = wire.Stopped, 255, time.Now()
	c.active--
	c.settled.Broadcast()
	close(p.done)
	if p.abandoned {
		delete(c.execs, p.execID)
	}
}

// abandon says that nobody waits for the start of an exec any more.
func (c *container) abandon(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.abandoned = true
	if p.pidfd != nil {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// word says a state to a person.
func word(s wire.TaskStatus) string {
	switch s {
	case wire.Created:
		return "created"
	case wire.Running:
		return "running"
	case wire.Stopped:
		return "stopped"
	case wire.Paused:
		return "paused"
	case wire.Pausing:
		return "pausing"
	}
	return "unknown"
}
