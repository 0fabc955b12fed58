package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/oci"
	"github.com/berthd/berth/shim/wire"
)

// undoLimit bounds the undoing of a create that failed.
const undoLimit = 30 * time.Second

// create makes a container; with run it also starts it, in one step of the runtime.
// If ctx ends first, what was made is undone: nobody is left who knows of it.
func (s *Shim) create(ctx context.Context, r *wire.CreateTask, run bool) (uint32, error) {
	c, err := s.newContainer(r)
	if err != nil {
		return 0, err
	}
	if err := s.put(c); err != nil {
		return 0, err
	}
	defer c.unlock()
	pid, err := c.make(ctx, run)
	if err != nil {
		c.undo(ctx)
		s.remove(c)
		return 0, fmt.Errorf("create container %s: %w", c.id, err)
	}
	return uint32(pid), nil
}

// newContainer reads a request. The container's turn is taken.
func (s *Shim) newContainer(r *wire.CreateTask) (*container, error) {
	if err := checkID("container id", r.ID); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(r.Bundle) {
		return nil, errs.New(errs.InvalidArgument, "bundle %q is not an absolute path", r.Bundle)
	}
	if r.Stdio.Terminal && r.Stdio.Stderr != "" && r.Stdio.Stderr != r.Stdio.Stdout {
		r.Stdio.Stderr = ""
	}
	options, err := readOptions(r.Options)
	if err != nil {
		return nil, err
	}
	spec, err := readSpec(r.Bundle)
	if err != nil {
		return nil, err
	}
	if options.IoUID == 0 && options.IoGID == 0 { // the pipes are the container's own: it may open /dev/stderr
		options.IoUID, options.IoGID = rootOf(spec.Linux.UIDMappings), rootOf(spec.Linux.GIDMappings)
	}
	c := &container{
		shim: s, id: r.ID, bundle: filepath.Clean(r.Bundle), rootfs: r.Rootfs, options: options, spec: spec,
		restore: r.Checkpoint, parent: r.ParentCheckpoint, turn: make(chan struct{}, 1), execs: map[string]*process{},
	}
	c.settled = sync.NewCond(&c.mu)
	c.runtime = s.config.Runtime(c.settings(0), c.bundle)
	c.init = newProcess(c, "", r.Stdio)
	c.turn <- struct{}{}
	return c, nil
}

// make does the work of create, from intent to event.
func (c *container) make(ctx context.Context, run bool) (int, error) {
	if err := c.settings(0).write(c.bundle); err != nil {
		return 0, err
	}
	_ = os.Remove(filepath.Join(c.bundle, exitFile))
	if err := c.mount(); err != nil {
		return 0, err
	}
	if err := c.openStdio(ctx, c.init); err != nil {
		return 0, err
	}
	if c.restore != "" {
		c.created(0)
		if !run {
			return 0, nil
		}
		return c.startInit(ctx)
	}
	release := c.shim.reaper.Hold()
	defer release()
	request := oci.Create{ID: c.id, Bundle: c.bundle, Terminal: c.init.req.Terminal, Stdio: c.init.stdio.Child()}
	verb := c.runtime.Create
	if run {
		verb = c.runtime.Run
		c.init.held = true
	}
	started, err := verb(ctx, request)
	if err != nil {
		return 0, err
	}
	c.watch(started)
	if err := c.settings(own(started)).write(c.bundle); err != nil {
		if started.Console != nil {
			_ = started.Console.Close()
		}
		return 0, err
	}
	// The event first: the process may die as soon as it is claimed.
	c.created(started.Pid)
	if err := c.init.begin(started); err != nil {
		return 0, err
	}
	if run {
		c.running(started.Pid)
	}
	c.shim.quiet.work()
	return started.Pid, nil
}

// own is the pid that may be killed to end the container: 0 if it is a sandbox's,
// which others share.
func own(s oci.Started) int {
	if s.Exit != nil {
		return 0
	}
	return s.Pid
}

func (c *container) mount() error {
	if len(c.rootfs) == 0 {
		return nil
	}
	if err := os.Mkdir(c.rootDir(), 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make root directory: %w", err)
	}
	return c.shim.config.Mounter.Mount(c.rootfs, c.rootDir())
}

func (c *container) created(pid int) {
	c.shim.events.push(&wire.TaskCreate{
		ContainerID: c.id, Bundle: c.bundle, Rootfs: c.rootfs, Stdio: c.init.req, Checkpoint: c.restore, Pid: uint32(pid),
	})
}

// undo takes back what make has done, on its own time.
func (c *container) undo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	if err := c.runtime.Delete(ctx, c.id, c.bundle, true); err != nil {
		c.shim.log("undo create of container " + c.id + ": " + err.Error())
	}
	c.mu.Lock()
	claimed := c.init.pid != 0
	c.mu.Unlock()
	if claimed {
		c.init.release()
		select {
		case <-c.init.done:
		case <-ctx.Done():
		}
	}
	if err := removeGroup(ctx, c.settings(0), c.id); err != nil {
		c.shim.log("undo create of container " + c.id + ": " + err.Error())
	}
	if err := c.dispose(); err != nil {
		c.shim.log("undo create of container " + c.id + ": " + err.Error())
	}
}

// dispose lets go of everything but the runtime's part. It may be called again
// after an error.
func (c *container) dispose() error {
	c.mu.Lock()
	execs := c.execs
	c.execs = map[string]*process{}
	c.mu.Unlock()
	for _, p := range execs {
		if p.stdio != nil {
			p.stdio.Close()
		}
	}
	if c.init.stdio != nil {
		c.init.stdio.Close()
	}
	c.finished.Wait()
	c.oom.close()
	c.oom = nil
	return c.shim.config.Mounter.Unmount(c.rootDir())
}
