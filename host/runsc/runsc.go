// Package runsc is an OCI runtime that is gVisor's runsc program. Its command line
// is runc's, but a container's processes are not the host's: those of all containers
// of a pod live in one sandbox process, which is that of the pod's first container.
//
//	sandbox   container-type sandbox (or none): its process is the sandbox, our child
//	container container-type container: known to the sandbox only; `runsc wait` tells its end
//
// So signals and lists go through the program, and the end of a container that is
// no process of ours comes on a channel. The runtime's own state of a pod is in the
// bundle of its sandbox. The package owns one waiting program for each running
// container that is not its pod's first.
package runsc

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/child"
	"github.com/berthd/berth/host/oci"
	"github.com/berthd/berth/host/runc"
)

// Annotations by which runsc, like every runtime with a kernel of its own, tells a
// pod's containers apart (gVisor: runsc/specutils; CRI).
const (
	containerType = "io.kubernetes.cri.container-type"
	sandboxID     = "io.kubernetes.cri.sandbox-id"
)

// Is reports whether a program is gVisor's, by its name.
func Is(binary string) bool { return strings.HasPrefix(filepath.Base(binary), "runsc") }

// Runtime runs one container.
type Runtime struct {
	*runc.Runtime
	root   string
	reaper *child.Reaper

	mu       sync.Mutex
	stdio    oci.Stdio       // of a container that waits for its start
	ended    chan child.Exit // nil for a sandbox
	pid      int             // of the sandbox
	started  bool            // a waiter tells its end
	internal map[string]int  // pids of execs in the sandbox, by exec id
}

// New returns the runtime of the container that a bundle describes. root is where
// the runtime keeps its state, or "" for the bundle of the pod's sandbox.
func New(c runc.Config, bundle string, r *child.Reaper) *Runtime {
	if c.Root == "" {
		c.Root = filepath.Join(bundle, "runtime-state")
		if of := sandboxOf(bundle); of != "" {
			c.Root = filepath.Join(filepath.Dir(bundle), of, "runtime-state")
		}
	}
	return &Runtime{Runtime: runc.New(c, r), root: c.Root, reaper: r, internal: map[string]int{}}
}

// sandboxOf names the sandbox whose kernel a container shares; "" if the container
// is itself one, or alone.
func sandboxOf(bundle string) string {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return ""
	}
	var s struct {
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(data, &s) != nil || s.Annotations[containerType] != "container" {
		return ""
	}
	id := s.Annotations[sandboxID]
	if id == "" || strings.ContainsAny(id, "/\x00") || id == "." || id == ".." {
		return ""
	}
	return id
}

// Guest says that the container's processes are not this machine's.
func (r *Runtime) Guest() {}

// Create makes the container. The end of one that shares its sandbox is told on the
// answer's channel.
func (r *Runtime) Create(ctx context.Context, c oci.Create) (oci.Started, error) {
	if sandboxOf(c.Bundle) == "" {
		return r.Runtime.Create(ctx, c)
	}
	stdio, err := duplicate(c.Stdio)
	if err != nil {
		return oci.Started{}, err
	}
	s, err := r.Runtime.Create(ctx, c)
	if err != nil {
		closeAll(stdio)
		return s, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stdio, r.ended, r.pid = stdio, make(chan child.Exit, 1), s.Pid
	s.Exit = r.ended
	return s, nil
}

// Run is Create and Start.
func (r *Runtime) Run(ctx context.Context, c oci.Create) (oci.Started, error) {
	s, err := r.Create(ctx, c)
	if err != nil {
		return s, err
	}
	return s, r.Start(ctx, c.ID, c.Bundle)
}

// Start lets the first process go on. runsc takes the streams of a container that
// joins a sandbox from this call.
func (r *Runtime) Start(ctx context.Context, id, bundle string) error {
	r.mu.Lock()
	stdio, shares := r.stdio, r.ended != nil
	r.mu.Unlock()
	if !shares {
		return r.Runtime.Start(ctx, id, bundle)
	}
	defer r.closeStdio()
	if err := r.Verb(ctx, runc.Verb{Bundle: bundle, ID: id, Args: []string{"start"}, Stdio: stdio}); err != nil {
		return fmt.Errorf("OCI runtime start failed: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started = true
	// owner: the shim, which waits for the container's end before it ends
	go r.wait(context.WithoutCancel(ctx), id, bundle)
	return nil
}

// wait tells the container's end. A sandbox that dies takes its containers with it.
func (r *Runtime) wait(ctx context.Context, id, bundle string) {
	exit := child.Exit{Pid: r.pid, Status: 128 + int(syscall.SIGKILL)}
	out, err := r.Output(ctx, runc.Verb{Bundle: bundle, ID: id, Args: []string{"wait"}})
	var said struct {
		ExitStatus *int `json:"exitStatus"`
	}
	if err == nil && json.Unmarshal(out, &said) == nil && said.ExitStatus != nil {
		exit.Status = *said.ExitStatus
	}
	exit.At = time.Now()
	r.ended <- exit
}

// Exec starts one more process; the program that runs for it on the host ends as it
// ends.
func (r *Runtime) Exec(ctx context.Context, e oci.Exec) (oci.Started, error) {
	file := filepath.Join(e.Bundle, e.ExecID+".internal.pid")
	defer func() { _ = os.Remove(file) }()
	e.More = append(e.More, "--internal-pid-file", file)
	s, err := r.Runtime.Exec(ctx, e)
	if err != nil {
		return s, err
	}
	if text, err := os.ReadFile(file); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			r.mu.Lock()
			r.internal[e.ExecID] = pid
			r.mu.Unlock()
		}
	}
	return s, nil
}

// Kill signals the first process, all of the container, or with an ExecID an exec.
func (r *Runtime) Kill(ctx context.Context, t oci.Target, sig syscall.Signal, all bool) error {
	if t.PidFD == nil {
		return errs.New(errs.NotFound, "process already finished")
	}
	args := []string{"kill"}
	r.mu.Lock()
	unborn := r.ended != nil && !r.started
	internal := r.internal[t.ExecID]
	r.mu.Unlock()
	if unborn {
		return r.killUnborn(sig)
	}
	switch {
	case t.ExecID != "" && internal != 0:
		args = append(args, "--pid", strconv.Itoa(internal))
	case t.ExecID != "":
		return r.Runtime.Kill(ctx, t, sig, false)
	case all:
		args = append(args, "--all")
	}
	err := r.Verb(ctx, runc.Verb{Bundle: filepath.Dir(r.root), ID: t.ID, Args: args, After: []string{strconv.Itoa(int(sig))}})
	if err != nil && (strings.Contains(err.Error(), "not running") || strings.Contains(err.Error(), "connection refused") || gone(err)) {
		return errs.New(errs.NotFound, "process already finished")
	}
	return err
}

// killUnborn ends a container that joined a sandbox and was never started: nothing
// of it runs, Delete removes it.
func (r *Runtime) killUnborn(sig syscall.Signal) error {
	if sig != syscall.SIGKILL && sig != syscall.SIGTERM {
		return nil
	}
	r.closeStdio()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started {
		return nil
	}
	r.started = true
	r.ended <- child.Exit{Pid: r.pid, Status: 128 + int(sig), At: time.Now()}
	return nil
}

// Ps lists the processes, by the numbers they have inside.
func (r *Runtime) Ps(ctx context.Context, t oci.Target) ([]int, error) {
	out, err := r.Output(ctx, runc.Verb{Bundle: filepath.Dir(r.root), ID: t.ID, Args: []string{"ps", "--format", "json"}})
	if err != nil {
		return nil, fmt.Errorf("OCI runtime ps failed: %w", err)
	}
	var pids []int
	if err := json.Unmarshal(out, &pids); err != nil {
		return nil, fmt.Errorf("OCI runtime ps: its answer: %w", err)
	}
	return pids, nil
}

// Pause stops the sandbox's kernel from running the container, Resume lets it go on.
func (r *Runtime) Pause(ctx context.Context, t oci.Target) error {
	return r.Verb(ctx, runc.Verb{Bundle: filepath.Dir(r.root), ID: t.ID, Args: []string{"pause"}})
}

// Resume undoes Pause.
func (r *Runtime) Resume(ctx context.Context, t oci.Target) error {
	return r.Verb(ctx, runc.Verb{Bundle: filepath.Dir(r.root), ID: t.ID, Args: []string{"resume"}})
}

// Delete removes what the runtime keeps of a container; with the sandbox goes what
// runsc has mounted for it.
func (r *Runtime) Delete(ctx context.Context, id, bundle string, force bool) error {
	r.closeStdio()
	err := r.Runtime.Delete(ctx, id, bundle, force)
	if err != nil && gone(err) {
		err = nil
	}
	if err != nil && sandboxOf(bundle) != "" && !r.sandboxAlive(bundle) {
		// Its sandbox is dead, and it with it: only the record is left.
		err = r.forget(id)
	}
	if err == nil && sandboxOf(bundle) == "" {
		err = r.unmount()
	}
	return err
}

// gone tells runsc's words for a container that it does not know.
func gone(err error) bool {
	text := err.Error()
	return strings.Contains(text, "does not exist") || strings.Contains(text, "container not found")
}

func (r *Runtime) sandboxAlive(bundle string) bool {
	text, err := os.ReadFile(filepath.Join(bundle, "init.pid"))
	if err != nil {
		return false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return false
	}
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	return err == nil && Is(exe)
}

// forget removes the record of a container, files named CONTAINER_sandbox:SANDBOX.
func (r *Runtime) forget(id string) error {
	files, err := filepath.Glob(filepath.Join(r.root, id+"_sandbox:*"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

// unmount takes away the empty network namespace that runsc keeps in its root.
func (r *Runtime) unmount() error {
	err := unix.Unmount(filepath.Join(r.root, "null-netns"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount what runsc has left in %s: %w", r.root, err)
	}
	return nil
}

// duplicate keeps streams open until the start.
func duplicate(s oci.Stdio) (oci.Stdio, error) {
	var out oci.Stdio
	for _, f := range []struct {
		from *os.File
		to   **os.File
	}{{s.Stdin, &out.Stdin}, {s.Stdout, &out.Stdout}, {s.Stderr, &out.Stderr}} {
		if f.from == nil {
			continue
		}
		rc, err := f.from.SyscallConn()
		if err != nil {
			closeAll(out)
			return oci.Stdio{}, err
		}
		fd := -1
		var dup error
		if err := rc.Control(func(old uintptr) { fd, dup = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil || dup != nil {
			closeAll(out)
			return oci.Stdio{}, fmt.Errorf("keep a stream until the start: %w", dup)
		}
		*f.to = os.NewFile(uintptr(fd), f.from.Name())
	}
	return out, nil
}

func closeAll(s oci.Stdio) {
	for _, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (r *Runtime) closeStdio() {
	r.mu.Lock()
	defer r.mu.Unlock()
	closeAll(r.stdio)
	r.stdio = oci.Stdio{}
}
