package task

import (
	"context"
	"os"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

const adopters = 8

// Adopt finds the tasks of earlier daemons again. It returns at once: each task is
// connected, or torn down if its shim is dead, in the background, and requests for
// it wait until that is settled. One hung shim holds up only its own task.
func (t *Tasks) Adopt(ctx context.Context) error {
	rows, err := store.Get(ctx, t.store.In(store.Scope{}), func(tx *store.Tx) ([]store.Task, error) { return tx.AllTasks() })
	if err != nil {
		return err
	}
	// What execs of an earlier daemon left: their shims have ended them.
	if err := os.RemoveAll(t.ioDir()); err != nil {
		return err
	}
	slots := make(chan struct{}, adopters)
	for _, row := range rows {
		task := newTask(row)
		t.put(task)
		t.wg.Add(1)
		// owner: Close waits for it through wg.
		go func() {
			defer t.wg.Done()
			select {
			case slots <- struct{}{}:
			case <-t.life.Done():
				return
			}
			defer func() { <-slots }()
			t.adopt(t.life, task)
		}()
	}
	return nil
}

func (t *Tasks) adopt(ctx context.Context, task *Task) {
	defer close(task.settled)
	unlock, err := t.names.Lock(ctx, task.key.String())
	if err != nil {
		return
	}
	defer unlock()
	if task.row.State == store.TaskReady && task.row.Boot == t.store.BootID() && t.reconnect(ctx, task) {
		return
	}
	if ctx.Err() != nil {
		return
	}
	t.bury(ctx, task)
}

// reconnect reaches the shim of a task and reports whether the task is there.
func (t *Tasks) reconnect(ctx context.Context, task *Task) bool {
	if err := t.followShim(task); err != nil {
		t.log.Warn("the log of a shim is not followed", "task", task.key, "error", err)
	}
	short, cancel := context.WithTimeout(ctx, t.cfg.ConnectTime)
	defer cancel()
	u, err := t.connect(short, task, bootstrapOf(task.row.Body))
	if err != nil {
		t.log.Warn("shim is dead, its task is cleaned up", "task", task.key, "error", err)
		return false
	}
	t.mu.Lock()
	task.use = u
	t.mu.Unlock()
	ask, cancel2 := context.WithTimeout(ctx, t.cfg.StateTime)
	defer cancel2()
	_, err = task.api().State(ask, "")
	// A shim that hangs still has the container: only NotFound says it has not.
	return !errs.Is(err, errs.NotFound)
}

// lost cleans up a task whose shim died.
func (t *Tasks) lost(task *Task) {
	ctx := t.life
	unlock, err := t.names.Lock(ctx, task.key.String())
	if err != nil {
		return
	}
	defer unlock()
	t.mu.Lock()
	still := t.mu.tasks[task.key] == task
	task.use = nil
	t.mu.Unlock()
	if !still {
		return
	}
	t.log.Warn("shim died, its task is cleaned up", "task", task.key, "pid", task.row.Body.Pid)
	t.bury(ctx, task)
}

// lostStatus is the exit status of a process whose end nobody saw.
const lostStatus = 137

// bury tears a task down and tells the end that its shim could not tell.
func (t *Tasks) bury(ctx context.Context, task *Task) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	started := task.row.State == store.TaskReady
	task.exit = shim.Exit{Pid: task.row.Body.Pid, Status: lostStatus, At: time.Now()}
	exit, err := t.teardown(ctx, task)
	if err != nil {
		// The row stays: the next start tries again.
		t.log.Error("clean up after a dead shim", "task", task.key, "error", err)
		return
	}
	if exit.Status != 0 && !exit.At.IsZero() {
		task.exit.Status, task.exit.At = exit.Status, exit.At
	}
	if !started {
		return
	}
	ended := event.Ended{Namespace: task.key.ns, Container: task.key.id, Pid: task.exit.Pid, Status: task.exit.Status, At: task.exit.At}
	if err := t.cfg.Exchange.TaskEnded(ended); err != nil {
		t.log.Error("the end of a task is not told", "task", task.key, "error", err)
	}
}
