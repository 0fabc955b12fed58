package shim

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/shim/wire"
)

const (
	// drainLimit is how long the last output of a process may take to its readers.
	drainLimit = 10 * time.Second
	// deathLimit is how long a created container may take to die of SIGKILL.
	deathLimit = 10 * time.Second
)

// delete removes a container whose first process does not run, or an exec.
func (s *Shim) delete(ctx context.Context, r *wire.Process) (*wire.Deleted, error) {
	c, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	if r.ExecID != "" {
		return c.deleteExec(r.ExecID)
	}
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.unlock()
	if err := c.endCreated(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.deleted {
		c.mu.Unlock()
		return nil, errs.New(errs.NotFound, "container %s does not exist", c.id)
	}
	if c.init.status != wire.Stopped && c.init.pid != 0 {
		status := c.init.status
		c.mu.Unlock()
		return nil, errs.New(errs.FailedPrecondition, "container %s cannot be deleted: it is %s", c.id, word(status))
	}
	answer := &wire.Deleted{Pid: uint32(c.init.pid), ExitStatus: uint32(c.init.exit.Status), ExitedAt: c.init.exit.At}
	c.mu.Unlock()
	c.init.stdio.Drain(drainLimit)
	// From here on it is finished even if the caller leaves.
	ctx = context.WithoutCancel(ctx)
	if err := c.runtime.Delete(ctx, c.id, c.bundle, false); err != nil {
		return nil, fmt.Errorf("delete container %s: %w", c.id, err)
	}
	if err := c.dispose(); err != nil {
		return nil, fmt.Errorf("delete container %s: %w", c.id, err)
	}
	s.remove(c)
	s.events.push(&wire.TaskDelete{
		ContainerID: c.id, Pid: answer.Pid, ExitStatus: answer.ExitStatus, ExitedAt: answer.ExitedAt,
	})
	s.quiet.work()
	return answer, nil
}

// endCreated kills a container that was created and never started, and waits for
// its end to be told.
func (c *container) endCreated(ctx context.Context) error {
	c.mu.Lock()
	alive := c.init.status == wire.Created && c.init.pid != 0
	c.mu.Unlock()
	if !alive {
		return nil
	}
	err := c.runtime.Kill(ctx, c.target(), syscall.SIGKILL, false)
	if errs.Ignore(err, errs.NotFound) != nil {
		return fmt.Errorf("end created container %s: %w", c.id, err)
	}
	t := time.NewTimer(deathLimit)
	defer t.Stop()
	select {
	case <-c.init.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end created container %s: %w", c.id, context.Cause(ctx))
	case <-t.C:
		return errs.New(errs.Unavailable, "created container %s does not die", c.id)
	}
}

func (c *container) deleteExec(execID string) (*wire.Deleted, error) {
	p, err := c.process(execID)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if p.held || p.status == wire.Running {
		c.mu.Unlock()
		return nil, errs.New(errs.FailedPrecondition, "process %s cannot be deleted: it runs", execID)
	}
	answer := &wire.Deleted{Pid: uint32(p.pid), ExitStatus: uint32(p.exit.Status), ExitedAt: p.exit.At}
	if p.status == wire.Created {
		p.status = wire.Stopped // it never ran and never will
		close(p.done)
	}
	c.mu.Unlock()
	if p.stdio != nil {
		p.stdio.Drain(drainLimit)
	}
	c.forget(p)
	c.shim.quiet.work()
	return answer, nil
}
