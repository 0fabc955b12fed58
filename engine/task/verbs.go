package task

import (
	"context"
	"fmt"
	"slices"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// The words of this package's answers are those of the shims.
type (
	State       = shim.State
	Exit        = shim.Exit
	ExecRequest = shim.ExecRequest
	Process     = shim.Process
)

// with runs fn on a task's shim and says in the error what was being done.
func with[T any](ctx context.Context, t *Tasks, v store.Scoped, what, cid string, fn func(shim.Task) (T, error)) (T, error) {
	var zero T
	_, api, err := t.find(ctx, v.Namespace(), cid)
	if err != nil {
		return zero, err
	}
	out, err := fn(api)
	if err != nil {
		return out, fmt.Errorf("%s task %q: %w", what, cid, err)
	}
	return out, nil
}

func do(ctx context.Context, t *Tasks, v store.Scoped, what, cid string, fn func(shim.Task) error) error {
	_, err := with(ctx, t, v, what, cid, func(api shim.Task) (struct{}, error) { return struct{}{}, fn(api) })
	return err
}

// Start runs the init of a created task, or an exec, and returns its pid.
func (t *Tasks) Start(ctx context.Context, v store.Scoped, cid, execID string) (uint32, error) {
	return with(ctx, t, v, "start", cid, func(api shim.Task) (uint32, error) { return api.Start(ctx, execID) })
}

// Exec registers a process to be started.
func (t *Tasks) Exec(ctx context.Context, v store.Scoped, cid string, r ExecRequest) error {
	if err := id.Check("exec id", r.ExecID); err != nil {
		return err
	}
	return do(ctx, t, v, "exec in", cid, func(api shim.Task) error { return api.Exec(ctx, r) })
}

// Kill signals a process, or with all every process of the container.
func (t *Tasks) Kill(ctx context.Context, v store.Scoped, cid, execID string, signal uint32, all bool) error {
	return do(ctx, t, v, "kill", cid, func(api shim.Task) error { return api.Kill(ctx, execID, signal, all) })
}

// Get asks for the state of a process. A shim that does not answer in time is an
// error; one that answers with any other error has a process whose state is
// unknown.
func (t *Tasks) Get(ctx context.Context, v store.Scoped, cid, execID string) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.StateTime)
	defer cancel()
	st, err := with(ctx, t, v, "state of", cid, func(api shim.Task) (State, error) { return api.State(ctx, execID) })
	if err != nil && !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Unavailable) && ctx.Err() == nil {
		return State{ID: cid, ExecID: execID}, nil
	}
	return st, err
}

// List asks every shim of the namespace at once for the state of its containers.
// One that does not answer in time counts as unknown.
func (t *Tasks) List(ctx context.Context, v store.Scoped) ([]State, error) {
	ids := t.ids(v.Namespace())
	out := make([]State, len(ids))
	each(ids, func(i int, cid string) {
		st, err := t.Get(ctx, v, cid, "")
		switch {
		case err == nil:
			out[i] = st
		case !errs.Is(err, errs.NotFound):
			out[i] = State{ID: cid}
		}
	})
	return slices.DeleteFunc(out, func(s State) bool { return s.ID == "" }), nil
}

// ids lists the tasks of a namespace.
func (t *Tasks) ids(ns string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for k := range t.mu.tasks {
		if k.ns == ns {
			out = append(out, k.id)
		}
	}
	slices.Sort(out)
	return out
}

// Wait returns when the process has ended, also when its shim dies with it.
func (t *Tasks) Wait(ctx context.Context, v store.Scoped, cid, execID string) (Exit, error) {
	task, api, err := t.find(ctx, v.Namespace(), cid)
	if err != nil {
		return Exit{}, err
	}
	exit, err := api.Wait(ctx, execID)
	if !errs.Is(err, errs.Unavailable) || ctx.Err() != nil {
		return exit, err
	}
	select {
	case <-task.gone: // bury has set the exit
		return task.exit, nil
	case <-t.life.Done():
		return exit, err
	case <-ctx.Done():
		return exit, context.Cause(ctx)
	}
}

// ResizePty sets a terminal's size, in characters.
func (t *Tasks) ResizePty(ctx context.Context, v store.Scoped, cid, execID string, width, height uint32) error {
	return do(ctx, t, v, "resize", cid, func(api shim.Task) error { return api.ResizePty(ctx, execID, width, height) })
}

// CloseIO closes a process's stdin.
func (t *Tasks) CloseIO(ctx context.Context, v store.Scoped, cid, execID string, stdin bool) error {
	return do(ctx, t, v, "close stdin of", cid, func(api shim.Task) error { return api.CloseIO(ctx, execID, stdin) })
}

// Pause freezes a container.
func (t *Tasks) Pause(ctx context.Context, v store.Scoped, cid string) error {
	return do(ctx, t, v, "pause", cid, func(api shim.Task) error { return api.Pause(ctx) })
}

// Resume thaws a container.
func (t *Tasks) Resume(ctx context.Context, v store.Scoped, cid string) error {
	return do(ctx, t, v, "resume", cid, func(api shim.Task) error { return api.Resume(ctx) })
}

// Pids lists the processes of a container.
func (t *Tasks) Pids(ctx context.Context, v store.Scoped, cid string) ([]Process, error) {
	return with(ctx, t, v, "list the processes of", cid, func(api shim.Task) ([]Process, error) { return api.Pids(ctx) })
}

// Update changes a container's limits.
func (t *Tasks) Update(ctx context.Context, v store.Scoped, cid string, resources store.Any, annotations map[string]string) error {
	return do(ctx, t, v, "update", cid, func(api shim.Task) error { return api.Update(ctx, resources, annotations) })
}

// Delete removes a stopped task with its shim and bundle.
func (t *Tasks) Delete(ctx context.Context, v store.Scoped, cid string) (Exit, error) {
	unlock, err := t.names.Lock(ctx, key{v.Namespace(), cid}.String())
	if err != nil {
		return Exit{}, fmt.Errorf("delete task %q: another create or delete of it is under way: %w", cid, err)
	}
	defer unlock()
	task, api, err := t.find(ctx, v.Namespace(), cid)
	if err != nil {
		return Exit{}, err
	}
	exit, err := api.Delete(ctx, "")
	if err != nil && !errs.Is(err, errs.NotFound) {
		return exit, fmt.Errorf("delete task %q: %w", cid, err)
	}
	// The container is gone from its shim: what follows must be done, whoever
	// waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if _, err := t.shutdown(ctx, task); err != nil {
		t.log.Warn("end shim", "task", task.key, "error", err)
	}
	t.awaitLent(task)
	if err := t.removeBundle(task.key); err != nil {
		return exit, err
	}
	err = v.Update(ctx, func(tx *store.Tx) error { return tx.DeleteTask(cid) })
	t.forget(task)
	return exit, err
}

// DeleteProcess removes a stopped exec.
func (t *Tasks) DeleteProcess(ctx context.Context, v store.Scoped, cid, execID string) (Exit, error) {
	if execID == "" {
		return Exit{}, errs.New(errs.InvalidArgument, "delete process of task %q: the exec id must not be empty", cid)
	}
	return with(ctx, t, v, "delete exec of", cid, func(api shim.Task) (Exit, error) { return api.Delete(ctx, execID) })
}

// ReopenLog has a container's log go on in a new file at its path.
func (t *Tasks) ReopenLog(ctx context.Context, v store.Scoped, cid string) error {
	task, foreign, err := t.foreign(ctx, v.Namespace(), cid)
	if err != nil {
		return err
	}
	if foreign {
		if err := t.reopenLent(task); err != nil {
			return fmt.Errorf("reopen the log of task %q: %w", cid, err)
		}
		return nil
	}
	return do(ctx, t, v, "reopen the log of", cid, func(api shim.Task) error { return api.ReopenLog(ctx) })
}

// AttachSocket returns the path of the socket at which a process can be attached to.
func (t *Tasks) AttachSocket(ctx context.Context, v store.Scoped, cid, execID string) (string, error) {
	task, foreign, err := t.foreign(ctx, v.Namespace(), cid)
	if err != nil {
		return "", err
	}
	if foreign && execID == "" {
		return t.lentSocket(task.key), nil
	}
	return with(ctx, t, v, "attach to", cid, func(api shim.Task) (string, error) { return api.AttachSocket(ctx, execID) })
}
