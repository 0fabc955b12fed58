package task

import (
	"context"
	"syscall"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// Running and Stopped are the states that callers ask for.
const (
	Running = shim.Running
	Stopped = shim.Stopped
)

// End kills all of a task, waits for its end and deletes it. A task that is not
// there, or ends meanwhile, is no error.
func (t *Tasks) End(ctx context.Context, v store.Scoped, cid string) error {
	if err := t.Kill(ctx, v, cid, "", uint32(syscall.SIGKILL), true); err != nil && !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.FailedPrecondition) {
		return err
	}
	if _, err := t.Wait(ctx, v, cid, ""); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	_, err := t.Delete(ctx, v, cid)
	return errs.Ignore(err, errs.NotFound)
}
