package shim

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/oci"
	"github.com/berthd/berth/shim/wire"
)

func (s *Shim) state(r *wire.Process) (*wire.State, error) {
	c, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &wire.State{
		ID: p.name(), Bundle: c.bundle, Pid: uint32(p.pid), Status: p.status, Stdio: p.req,
		ExitStatus: uint32(p.exit.Status), ExitedAt: p.exit.At, ExecID: p.execID,
	}
	if st.Status != wire.Stopped {
		// Processes of a frozen container are as frozen as it is.
		switch {
		case c.pausing:
			st.Status = wire.Pausing
		case c.init.status == wire.Paused:
			st.Status = wire.Paused
		}
	}
	return st, nil
}

// kill signals a process. One that is dead is not found, as clients expect.
func (s *Shim) kill(ctx context.Context, r *wire.Kill) error {
	c, err := s.get(r.ID)
	if err != nil {
		return err
	}
	p, err := c.process(r.ExecID)
	if err != nil {
		return err
	}
	t := c.target()
	c.mu.Lock()
	t.Pid, t.PidFD = p.pid, p.pidfd
	unborn := p.pid == 0 && p.status == wire.Created
	c.mu.Unlock()
	if unborn {
		return errs.New(errs.FailedPrecondition, "process %s has not been started", p.name())
	}
	if r.Signal > 64 {
		return errs.New(errs.InvalidArgument, "signal %d is not valid", r.Signal)
	}
	if r.ExecID != "" {
		t.Group, t.ExecID = nil, r.ExecID // only the exec itself, and with all what it has started
		if r.All && !c.guest() && p.signalGroup(syscall.Signal(r.Signal)) {
			return nil
		}
		r.All = false
	}
	return c.runtime.Kill(ctx, t, syscall.Signal(r.Signal), r.All)
}

func (s *Shim) pids(ctx context.Context, r *wire.Process) (wire.Pids, error) {
	c, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	list, err := c.runtime.Ps(ctx, c.target())
	if err != nil {
		return nil, fmt.Errorf("list processes of container %s: %w", c.id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	execs := map[int]string{}
	for _, p := range c.execs {
		if p.pid != 0 && !p.dead {
			execs[p.pid] = p.execID
		}
	}
	out := make(wire.Pids, 0, len(list))
	for _, pid := range list {
		out = append(out, wire.PidInfo{Pid: uint32(pid), ExecID: execs[pid]})
	}
	return out, nil
}

// change does something to a container that must be in one of two states.
func (s *Shim) change(ctx context.Context, id, what string, from [2]wire.TaskStatus, do func(*container) error) error {
	c, err := s.get(id)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	c.mu.Lock()
	status := c.init.status
	gone := c.deleted
	c.mu.Unlock()
	if gone || status != from[0] && status != from[1] {
		return errs.New(errs.FailedPrecondition, "container %s cannot be %s: it is %s", id, what, word(status))
	}
	if err := do(c); err != nil {
		return fmt.Errorf("container %s cannot be %s: %w", id, what, err)
	}
	return nil
}

func (s *Shim) pause(ctx context.Context, id string) error {
	return s.change(ctx, id, "paused", [2]wire.TaskStatus{wire.Running, wire.Running}, func(c *container) error {
		c.mu.Lock()
		c.pausing = true
		c.mu.Unlock()
		err := c.runtime.Pause(ctx, c.target())
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pausing = false
		if err != nil || c.init.status != wire.Running {
			return err
		}
		c.init.status = wire.Paused
		s.events.push(wire.TaskPaused(id))
		return nil
	})
}

func (s *Shim) resume(ctx context.Context, id string) error {
	return s.change(ctx, id, "resumed", [2]wire.TaskStatus{wire.Paused, wire.Paused}, func(c *container) error {
		if err := c.runtime.Resume(ctx, c.target()); err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.init.status == wire.Paused {
			c.init.status = wire.Running
			s.events.push(wire.TaskResumed(id))
		}
		return nil
	})
}

func (s *Shim) update(ctx context.Context, r *wire.Update) error {
	c, err := s.get(r.ID)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	c.mu.Lock()
	stopped := c.init.status == wire.Stopped
	c.mu.Unlock()
	if stopped {
		return errs.New(errs.FailedPrecondition, "container %s cannot be updated: it is stopped", c.id)
	}
	return c.runtime.Update(ctx, c.id, c.bundle, r.Resources.Value)
}

func (s *Shim) checkpoint(ctx context.Context, r *wire.Checkpoint) error {
	var o wire.CheckpointOptions
	if err := o.Decode(r.Options.Value); err != nil {
		return errs.New(errs.InvalidArgument, "read checkpoint options: %v", err)
	}
	return s.change(ctx, r.ID, "checkpointed", [2]wire.TaskStatus{wire.Running, wire.Paused}, func(c *container) error {
		work := o.WorkPath
		if work == "" {
			work = c.options.CriuWorkPath
		}
		if work == "" {
			work = filepath.Join(c.bundle, "criu-work")
			defer func() { _ = os.RemoveAll(work) }()
		}
		err := c.runtime.Checkpoint(ctx, c.id, c.bundle, oci.Checkpoint{
			ImagePath: r.Path, WorkPath: work, ParentPath: o.ParentPath, LeaveRunning: !o.Exit, OpenTCP: o.OpenTCP,
			ExternalUnixSockets: o.ExternalUnixSockets, ShellJob: o.Terminal, FileLocks: o.FileLocks,
			EmptyNamespaces: o.EmptyNamespaces, CgroupsMode: o.CgroupsMode,
		})
		if err != nil {
			kept := filepath.Join(c.bundle, "criu-dump.log")
			if copyFile(kept, filepath.Join(work, "dump.log")) == nil {
				return fmt.Errorf("%w (CRIU's log is %s)", err, kept)
			}
			return err
		}
		s.events.push(wire.TaskCheckpointed(c.id, r.Path))
		return nil
	})
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if e := out.Close(); err == nil {
		err = e
	}
	return err
}

// wait blocks until a process has ended, started or not.
func (s *Shim) wait(ctx context.Context, r *wire.Process) (*wire.Waited, error) {
	c, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	p, err := c.process(r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return &wire.Waited{ExitStatus: uint32(p.exit.Status), ExitedAt: p.exit.At}, nil
}

func (s *Shim) stats(r *wire.Process) (*wire.Stats, error) {
	c, err := s.get(r.ID)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	g := c.group
	c.mu.Unlock()
	if g == nil {
		return nil, errs.New(errs.NotFound, "container %s has no cgroup", c.id)
	}
	return &wire.Stats{Stats: wire.Metrics(g)}, nil
}

func (s *Shim) connect(r *wire.Process) (*wire.Connected, error) {
	answer := &wire.Connected{ShimPid: uint32(os.Getpid()), Version: s.config.Version}
	if c, err := s.get(r.ID); err == nil {
		c.mu.Lock()
		answer.TaskPid = uint32(c.init.pid)
		c.mu.Unlock()
	}
	return answer, nil
}

// withStdio calls fn with a process whose streams are open.
func (s *Shim) withStdio(r wire.Process, fn func(*process) error) error {
	c, err := s.get(r.ID)
	if err != nil {
		return err
	}
	p, err := c.process(r.ExecID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	open := p.stdio != nil
	c.mu.Unlock()
	if !open {
		return errs.New(errs.FailedPrecondition, "process %s has not been started", p.name())
	}
	return fn(p)
}

func (s *Shim) resize(r *wire.ResizePty) error {
	return s.withStdio(r.Process, func(p *process) error { return p.stdio.Resize(uint16(r.Width), uint16(r.Height)) })
}

func (s *Shim) closeIO(r *wire.CloseIO) error {
	if !r.Stdin {
		return nil
	}
	return s.withStdio(r.Process, func(p *process) error { p.stdio.CloseStdin(); return nil })
}

// shutdown ends the shim if it has no containers and holds no sandbox; with now it
// ends the containers first.
func (s *Shim) shutdown(ctx context.Context, r *wire.Shutdown) error {
	if r.Now {
		for _, c := range s.all() {
			if err := s.end(ctx, c); err != nil {
				return err
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.containers) == 0 && s.sandbox == nil {
		s.endOnce()
	}
	return nil
}

// end kills and deletes a container.
func (s *Shim) end(ctx context.Context, c *container) error {
	err := s.kill(ctx, &wire.Kill{Process: wire.Process{ID: c.id}, Signal: uint32(syscall.SIGKILL), All: true})
	if errs.Ignore(err, errs.NotFound, errs.FailedPrecondition) != nil {
		return err
	}
	c.mu.Lock()
	born := c.init.pid != 0
	c.mu.Unlock()
	if born {
		short, cancel := context.WithTimeout(ctx, deathLimit)
		defer cancel()
		if _, err := s.wait(short, &wire.Process{ID: c.id}); err != nil {
			return fmt.Errorf("end container %s: %w", c.id, err)
		}
	}
	_, err = s.delete(ctx, &wire.Process{ID: c.id})
	return errs.Ignore(err, errs.NotFound)
}
