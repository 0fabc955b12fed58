package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/store"
)

// AnswerTime is how long a shim may take to end a container before it is asked
// whether it hangs.
const AnswerTime = 10 * time.Second

// EndByForce is End that does not stop at a shim that hangs: that is killed, with
// all the containers that it serves.
func (t *Tasks) EndByForce(ctx context.Context, v store.Scoped, cid string) error {
	short, cancel := context.WithTimeout(ctx, AnswerTime)
	defer cancel()
	err := t.End(short, v, cid)
	if err == nil || ctx.Err() != nil || short.Err() == nil {
		return err
	}
	if err := errors.Join(err, t.KillHungShim(ctx, v, cid)); err != nil && !t.gone(v, cid) {
		return err
	}
	return nil
}

func (t *Tasks) gone(v store.Scoped, cid string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mu.tasks[key{v.Namespace(), cid}] == nil
}

// KillHungShim kills a task's shim if it does not answer, and waits until what it
// leaves is cleaned up. One that answers is not touched, and an error.
func (t *Tasks) KillHungShim(ctx context.Context, v store.Scoped, cid string) error {
	task, api, err := t.find(ctx, v.Namespace(), cid)
	if err != nil {
		return errs.Ignore(err, errs.NotFound)
	}
	if st, err := t.Get(ctx, v, cid, ""); err == nil && st.Status != 0 || errs.Is(err, errs.NotFound) {
		return errs.New(errs.FailedPrecondition, "task %q: its shim answers, so it is not killed", cid)
	}
	t.log.Warn("a shim does not answer: it is killed, with the containers that it serves", "task", task.key, "address", api.Conn.Bootstrap().Address)
	if err := api.Conn.Kill(ctx); err != nil {
		return fmt.Errorf("task %q: its shim does not answer and cannot be killed: %w", cid, err)
	}
	select {
	case <-task.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("task %q: its shim did not answer and was killed; what it left is not cleaned up yet: %w", cid, context.Cause(ctx))
	}
}
