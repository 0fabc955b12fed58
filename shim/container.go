package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/host/child"
	"github.com/berthd/berth/host/oci"
	"github.com/berthd/berth/shim/stdio"
	"github.com/berthd/berth/shim/wire"
)

// container is one container of the shim. The states of its first process:
//
//	            Create               Start                 dies
//	(creating) ────────→ created ───────────→ running ────────────→ stopped
//	                        │  dies            ↑ │ Pause               │
//	                        └──────────┐ Resume│ ↓                     │ Delete
//	                                   │       paused ─ dies ─→        ↓
//	                                   └────────────────────────→  (gone)
//
// Delete of a created container kills it first.
type container struct {
	shim     *Shim
	id       string
	bundle   string
	rootfs   []spec.Mount
	options  wire.Options
	runtime  Runtime
	spec     bundleSpec
	restore  string // checkpoint to start from, ""
	parent   string // of that checkpoint
	turn     chan struct{}
	init     *process
	oom      *oomWatch     // nil if it cannot be watched
	group    *cgroup.Group // nil if it has none of its own
	finished sync.WaitGroup

	mu      sync.Mutex
	execs   map[string]*process
	active  int        // execs that run or are being started
	settled *sync.Cond // active fell
	pausing bool
	deleted bool
}

// process is the first process of a container or an exec. Its fields below mu's
// mark are guarded by the container's mu.
type process struct {
	c      *container
	execID string // "" is the first process
	req    wire.Stdio
	spec   []byte // of an exec: OCI process
	stdio  *stdio.Stdio
	done   chan struct{} // closed when the exit has been told

	// guarded by c.mu
	pid       int
	pidfd     *os.File // nil before the start and after the death
	status    wire.TaskStatus
	exit      child.Exit
	dead      bool        // reaped, though perhaps not told yet
	held      bool        // its start has not been told: its exit must wait
	early     *child.Exit // the exit that waits
	onDeath   func()      // called once if it dies while held
	abandoned bool        // who started it left before it ran
}

func newProcess(c *container, execID string, req wire.Stdio) *process {
	return &process{c: c, execID: execID, req: req, status: wire.Created, done: make(chan struct{})}
}

// name is what events call the process.
func (p *process) name() string {
	if p.execID == "" {
		return p.c.id
	}
	return p.execID
}

// lock waits for the container's turn: what changes it is done one at a time.
func (c *container) lock(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another operation on container %s: %w", c.id, context.Cause(ctx))
	}
}

func (c *container) unlock() { <-c.turn }

// target is the container as the runtime's direct verbs want it.
func (c *container) target() oci.Target {
	c.mu.Lock()
	defer c.mu.Unlock()
	return oci.Target{ID: c.id, Pid: c.init.pid, PidFD: c.init.pidfd, Group: c.group, SharesPIDs: c.spec.sharesPIDs()}
}

// openStdio opens the streams of a process.
func (c *container) openStdio(ctx context.Context, p *process) error {
	attachAt := attachSocket
	if p.execID != "" {
		attachAt = p.execID + "." + attachSocket
	}
	s, err := stdio.Open(ctx, stdio.Config{
		Stdio: p.req, Namespace: c.shim.config.Namespace, ID: c.id, Bundle: c.bundle, AttachAt: attachAt,
		UID: int(c.options.IoUID), GID: int(c.options.IoGID), Reaper: c.shim.reaper, Log: c.shim.log, Gone: p.orphaned,
	})
	if err != nil {
		return fmt.Errorf("open streams of %s: %w", p.name(), err)
	}
	c.mu.Lock()
	p.stdio = s
	c.mu.Unlock()
	return nil
}

// begin is called when the runtime has left a process behind: it is claimed, and
// its streams are copied.
func (p *process) begin(s oci.Started) error {
	if err := p.stdio.Started(s.Console); err != nil {
		if s.Exit == nil {
			_ = syscall.Kill(s.Pid, syscall.SIGKILL)
		}
		return err
	}
	p.c.mu.Lock()
	p.pid = s.Pid
	if fd, err := pidfdOpen(s.Pid); err == nil {
		p.pidfd = fd
	}
	p.c.mu.Unlock()
	if s.Exit == nil {
		p.c.shim.reaper.Claim(s.Pid, p.died)
		return nil
	}
	p.c.finished.Add(1)
	// owner: Delete of the container waits for it through c.finished
	go func() { defer p.c.finished.Done(); p.died(<-s.Exit) }()
	return nil
}

// guest says that the container's processes are in a kernel of their own, where
// only the runtime reaches them.
func (c *container) guest() bool {
	_, yes := c.runtime.(interface{ Guest() })
	return yes
}

// died takes the exit from the reaper.
func (p *process) died(e child.Exit) {
	c := p.c
	c.mu.Lock()
	p.dead = true
	if p.pidfd != nil {
		_ = p.pidfd.Close()
		p.pidfd = nil
	}
	if p.held {
		p.early = &e
		if p.onDeath != nil {
			p.onDeath()
		}
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	p.finish(e)
}

// release lets the exit be told: the start has been.
func (p *process) release() {
	p.c.mu.Lock()
	p.held = false
	e := p.early
	p.early = nil
	p.c.mu.Unlock()
	if e != nil {
		p.finish(*e)
	}
}

// finish tells the exit. The one of a container's first process is told last.
func (p *process) finish(e child.Exit) {
	c := p.c
	p.stdio.Exited(uint32(e.Status))
	if p.execID != "" {
		c.mu.Lock()
		p.stop(e)
		c.active--
		c.settled.Broadcast()
		gone := p.abandoned
		c.mu.Unlock()
		if gone {
			c.finished.Add(1)
			// owner: Delete waits for it
			go func() { defer c.finished.Done(); c.forget(p) }()
		}
		return
	}
	c.finished.Add(1)
	// owner: Delete waits for it
	go func() { defer c.finished.Done(); c.finishInit(e) }()
}

// stop marks the process stopped and tells it; c.mu is held.
func (p *process) stop(e child.Exit) {
	p.status, p.exit = wire.Stopped, e
	p.c.shim.events.push(&wire.TaskExit{
		ContainerID: p.c.id, ID: p.name(), Pid: uint32(e.Pid), ExitStatus: uint32(e.Status), ExitedAt: e.At,
	})
	close(p.done)
	p.c.shim.quiet.work()
}

// lastWait is how long the exit of a first process waits for the exits of execs: a
// process that the kernel cannot kill must not keep the end of the container secret.
const lastWait = 10 * time.Second

// finishInit ends what the first process left, reads what the kernel has to say,
// makes the exit durable, and tells it.
func (c *container) finishInit(e child.Exit) {
	ctx, cancel := context.WithTimeout(context.Background(), lastWait)
	defer cancel()
	if c.group != nil {
		if c.spec.sharesPIDs() {
			if err := c.group.Signal(ctx, syscall.SIGKILL); err != nil {
				c.shim.log("end processes of container " + c.id + ": " + err.Error())
			}
		} else if c.group.Frozen() {
			_ = c.group.Thaw(ctx)
		}
	}
	c.waitExecs()
	oom := c.oom.verdict()
	if err := writeExit(c.bundle, c.id, e, oom); err != nil {
		c.shim.log("record exit of container " + c.id + ": " + err.Error())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.init.stop(e)
}

// waitExecs waits until no exec runs.
func (c *container) waitExecs() {
	late := false
	t := time.AfterFunc(lastWait, func() {
		c.mu.Lock()
		late = true
		c.settled.Broadcast()
		c.mu.Unlock()
	})
	defer t.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.active > 0 && !late {
		c.settled.Wait()
	}
}

// forget removes an exec.
func (c *container) forget(p *process) {
	if p.stdio != nil {
		p.stdio.Close()
	}
	c.mu.Lock()
	if c.execs[p.execID] == p {
		delete(c.execs, p.execID)
	}
	c.mu.Unlock()
}

// process finds an exec, or with "" the first process.
func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[execID]; p != nil {
		return p, nil
	}
	return nil, errs.New(errs.NotFound, "process %s of container %s does not exist", execID, c.id)
}

// watch finds the container's cgroup and watches it for want of memory. A
// container without a group of its own lives on unwatched.
func (c *container) watch(s oci.Started) {
	g, err := cgroup.System.Of(s.Pid)
	if errs.Is(err, errs.NotFound) || s.Exit != nil {
		g, err = cgroup.System.FromSpec(c.spec.Linux.CgroupsPath, c.id, c.options.SystemdCgroup)
	}
	if err != nil {
		c.shim.log("container " + c.id + ": " + err.Error())
		return
	}
	c.mu.Lock()
	c.group = g
	c.mu.Unlock()
	if c.oom, err = watchOOM(c, g); err != nil {
		c.shim.log("container " + c.id + ": " + err.Error())
	}
}

// settings is what `delete` will want to know.
func (c *container) settings(pid int) settings {
	return settings{
		Runtime: c.options.BinaryName, Root: c.options.Root, SystemdCgroup: c.options.SystemdCgroup,
		NoPivotRoot: c.options.NoPivotRoot, NoNewKeyring: c.options.NoNewKeyring,
		CgroupsPath: c.spec.Linux.CgroupsPath, Pid: pid, StartTime: startTime(pid),
	}
}

// startTime is field 22 of /proc/PID/stat, 0 if there is none (proc(5)).
func startTime(pid int) uint64 {
	if pid <= 0 {
		return 0
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name may hold anything, also spaces and brackets.
	text := string(data[strings.LastIndexByte(string(data), ')')+1:])
	words := strings.Fields(text)
	if len(words) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(words[19], 10, 64)
	return n
}

func (c *container) rootDir() string { return filepath.Join(c.bundle, "rootfs") }
