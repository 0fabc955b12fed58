package restart

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// step is what a look leads to; nothing at all is the common one.
type step struct {
	start, stop, remove, forget bool
	wait                        time.Time // look again then
}

// lost is the exit status of a process whose end nobody saw.
const lost = 137

// decide compares a container's labels with its task.
func (k *Keeper) decide(ctx context.Context, v store.Scoped, c store.Container, w watched) (step, error) {
	want, ok := c.Labels[label.RestartStatus]
	remove := c.Labels[label.AutoRemove] == "true"
	if !ok && !remove {
		return step{forget: true}, nil
	}
	st, err := k.cfg.Tasks.Get(ctx, v, c.ID, "")
	gone := errs.Is(err, errs.NotFound)
	if err != nil && !gone {
		return step{}, err
	}
	switch {
	case remove && !ok:
		return k.removable(c, w, gone, st.Status == shim.Stopped), nil
	case want == "stopped":
		if gone || st.Status != shim.Running {
			return step{}, nil
		}
		return k.unlessYoung(c.UpdatedAt, step{stop: true}), nil
	case want != "running":
		return step{}, nil
	case !gone && st.Status != shim.Stopped: // or about to be, or a shim that hangs
		return step{}, nil
	}
	status := st.ExitStatus
	if gone {
		if status = lost; !w.ended.IsZero() {
			status = w.status
		}
	}
	again, err := Again(c.Labels, status)
	if err != nil || !again {
		return step{}, err
	}
	// Whoever changed the row, or took the task away, after its end is at work on it:
	// a client that starts or removes the container must not meet us.
	other := c.UpdatedAt
	if w.deleted.After(other) {
		other = w.deleted
	}
	if !other.After(w.tried.Add(echo)) || !gone && other.Before(w.ended) {
		return step{start: true}, nil
	}
	return k.unlessYoung(other, step{start: true}), nil
}

// echo is how long after an attempt of our own its events may still come in.
const echo = time.Second

// unlessYoung puts a step off while the change at a time is recent.
func (k *Keeper) unlessYoung(at time.Time, s step) step {
	if ripe := at.Add(k.cfg.Interval); ripe.After(time.Now()) {
		return step{wait: ripe}
	}
	return s
}

// start makes the container's task anew. Its output goes where the label says, as it
// is nobody's who is still there.
func (k *Keeper) start(ctx context.Context, v store.Scoped, c store.Container) error {
	if _, err := k.cfg.Tasks.Delete(ctx, v, c.ID); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	n := count(c.Labels) + 1
	changed := store.Container{ID: c.ID, Labels: map[string]string{label.RestartCount: strconv.Itoa(n)}}
	if err := v.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.UpdateContainer(changed, "labels."+label.RestartCount)
		return err
	}); err != nil {
		return err
	}
	r := task.CreateRequest{ID: c.ID, Stdin: c.Labels[label.Stdin], Stdout: c.Labels[label.RestartLog], Terminal: terminal(c.Spec)}
	if !r.Terminal {
		r.Stderr = r.Stdout
	}
	if c.SnapshotKey != "" {
		var err error
		if r.Rootfs, err = v.SnapshotMounts(ctx, c.Snapshotter, c.SnapshotKey); err != nil {
			return err
		}
	}
	if _, err := k.cfg.Tasks.Create(ctx, v, r); err != nil {
		return err
	}
	if _, err := k.cfg.Tasks.Start(ctx, v, c.ID, ""); err != nil {
		return err
	}
	k.cfg.Log.Info("container is started again", "container", v.Namespace()+"/"+c.ID, "count", n)
	return nil
}

// terminal reads from a spec whether the container has one.
func terminal(spec store.Any) bool {
	var s struct {
		Process struct {
			Terminal bool `json:"terminal"`
		} `json:"process"`
	}
	return json.Unmarshal(spec.Value, &s) == nil && s.Process.Terminal
}

// stop ends a container for good, until its label asks otherwise.
func (k *Keeper) stop(ctx context.Context, v store.Scoped, id string) error {
	if err := k.cfg.Tasks.Kill(ctx, v, id, "", uint32(syscall.SIGKILL), true); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	if _, err := k.cfg.Tasks.Wait(ctx, v, id, ""); err != nil && !errs.Is(err, errs.NotFound) {
		return fmt.Errorf("wait for its end: %w", err)
	}
	if _, err := k.cfg.Tasks.Delete(ctx, v, id); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	return nil
}

// orphan ends a task that was made here while its container was being removed.
func (k *Keeper) orphan(ctx context.Context, v store.Scoped, id key, w watched) {
	if !w.made {
		return
	}
	if err := k.stop(ctx, v, id.id); err != nil {
		k.cfg.Log.Error("end the task of a container that was removed", "container", id.ns+"/"+id.id, "error", err)
	}
}
