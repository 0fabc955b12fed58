package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// The words of this package's answers are those of the shims.
type (
	Exit   = shim.Exit
	Status = shim.SandboxStatus
	Metric = shim.Metric
	Change = shim.SandboxChange
)

// Adopt finds the boxes of earlier daemons again, in the background: requests for
// one wait until it is settled.
func (b *Boxes) Adopt(ctx context.Context) error {
	rows, err := store.Get(ctx, b.cfg.Store.In(store.Scope{}), func(tx *store.Tx) ([]store.Box, error) { return tx.AllBoxes() })
	if err != nil {
		return err
	}
	for _, row := range rows {
		x := &box{row: row, settled: make(chan struct{}), gone: make(chan struct{})}
		b.all[x.key()] = x
		b.wg.Add(1)
		// owner: Close waits for it through wg.
		go func() {
			defer b.wg.Done()
			defer close(x.settled)
			b.adopt(x)
		}()
	}
	return nil
}

func (b *Boxes) adopt(x *box) {
	unlock, err := b.names.Lock(b.life, x.key())
	if err != nil {
		return
	}
	defer unlock()
	if x.row.State == store.TaskReady && x.row.Boot == b.cfg.Store.BootID() {
		short, cancel := context.WithTimeout(b.life, connectTime)
		defer cancel()
		u, err := b.cfg.Shims.Connect(short, bootstrap(x.row), func() { b.lost(x) })
		if err == nil {
			b.mu.Lock()
			x.use = u
			b.mu.Unlock()
			return
		}
		if b.life.Err() != nil {
			return
		}
		b.cfg.Log.Warn("shim is dead, its sandbox is cleaned up", "sandbox", x.key(), "error", err)
	}
	b.bury(x)
}

// lost cleans up a box whose shim died.
func (b *Boxes) lost(x *box) {
	unlock, err := b.names.Lock(b.life, x.key())
	if err != nil {
		return
	}
	defer unlock()
	b.mu.Lock()
	still := b.all[x.key()] == x
	x.use = nil
	b.mu.Unlock()
	if still {
		b.cfg.Log.Warn("shim died, its sandbox is cleaned up", "sandbox", x.key())
		b.bury(x)
	}
}

func (b *Boxes) bury(x *box) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.life), cleanupTime)
	defer cancel()
	if err := b.teardown(ctx, x); err != nil {
		// The row stays: the next start tries again.
		b.cfg.Log.Error("clean up after a dead shim", "sandbox", x.key(), "error", err)
	}
}

// find returns a box and its shim. One that is being adopted is waited for.
func (b *Boxes) find(ctx context.Context, ns, id string) (*box, shim.Sandbox, error) {
	missing := errs.New(errs.NotFound, "sandbox %q: no shim holds it", id)
	b.mu.Lock()
	x := b.all[ns+"/"+id]
	b.mu.Unlock()
	if x == nil {
		return nil, shim.Sandbox{}, missing
	}
	select {
	case <-x.settled:
	case <-ctx.Done():
		return nil, shim.Sandbox{}, context.Cause(ctx)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all[x.key()] != x || x.use == nil {
		return nil, shim.Sandbox{}, missing
	}
	return x, x.api(), nil
}

// Start starts a sandbox; it returns its pid, 0 if it has no process, and since
// when it is there. One that does not start is removed.
func (b *Boxes) Start(ctx context.Context, v store.Scoped, id string) (uint32, time.Time, error) {
	unlock, err := b.names.Lock(ctx, v.Namespace()+"/"+id)
	if err != nil {
		return 0, time.Time{}, err
	}
	defer unlock()
	_, api, err := b.find(ctx, v.Namespace(), id)
	if err != nil {
		return 0, time.Time{}, err
	}
	pid, at, err := api.Start(ctx)
	if err != nil {
		return 0, at, fmt.Errorf("start sandbox %q: %w", id, err)
	}
	return pid, at, b.cfg.Exchange.SandboxStarted(v.Namespace(), id)
}

// Stop ends what runs in a sandbox. One that is not there has stopped.
func (b *Boxes) Stop(ctx context.Context, v store.Scoped, id string, limit time.Duration) error {
	_, api, err := b.find(ctx, v.Namespace(), id)
	if err == nil {
		err = api.Stop(ctx, limit)
	}
	if err = errs.Ignore(err, errs.NotFound, errs.Unavailable); err != nil {
		return fmt.Errorf("stop sandbox %q: %w", id, err)
	}
	return nil
}

// Wait returns when a sandbox has ended, also by the death of its shim.
func (b *Boxes) Wait(ctx context.Context, v store.Scoped, id string) (Exit, error) {
	x, api, err := b.find(ctx, v.Namespace(), id)
	if err != nil {
		return Exit{}, err
	}
	exit, err := api.Wait(ctx)
	if errs.Is(err, errs.Unavailable) && ctx.Err() == nil {
		select {
		case <-x.gone:
			exit, err = Exit{Status: 137, At: time.Now()}, nil
		case <-b.life.Done():
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		return exit, fmt.Errorf("wait for sandbox %q: %w", id, err)
	}
	return exit, b.cfg.Exchange.SandboxEnded(v.Namespace(), id, exit.Status, exit.At)
}

// Status asks for the present state of a sandbox, and how its shim is reached. One
// that is not there has ended.
func (b *Boxes) Status(ctx context.Context, v store.Scoped, id string, verbose bool) (Status, shim.Bootstrap, error) {
	x, api, err := b.find(ctx, v.Namespace(), id)
	if errs.Is(err, errs.NotFound) {
		return Status{ID: id, ExitedAt: time.Now()}, shim.Bootstrap{}, nil
	}
	if err != nil {
		return Status{}, shim.Bootstrap{}, err
	}
	st, err := api.Status(ctx, verbose)
	if err != nil {
		return st, shim.Bootstrap{}, fmt.Errorf("status of sandbox %q: %w", id, err)
	}
	return st, bootstrap(x.row), nil
}

// Shutdown ends a sandbox with its shim, and removes what there is of it but its
// metadata.
func (b *Boxes) Shutdown(ctx context.Context, v store.Scoped, id string) error {
	unlock, err := b.names.Lock(ctx, v.Namespace()+"/"+id)
	if err != nil {
		return err
	}
	defer unlock()
	x, _, err := b.find(ctx, v.Namespace(), id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	return b.teardown(ctx, x)
}

// Metrics reads the statistics of a sandbox.
func (b *Boxes) Metrics(ctx context.Context, v store.Scoped, id string) (Metric, error) {
	_, api, err := b.find(ctx, v.Namespace(), id)
	if err != nil {
		return Metric{}, err
	}
	return api.Metrics(ctx)
}

// Update tells the shim of changed metadata.
func (b *Boxes) Update(ctx context.Context, v store.Scoped, id string, c Change) error {
	_, api, err := b.find(ctx, v.Namespace(), id)
	if err != nil {
		return err
	}
	if err := api.Update(ctx, c); err != nil {
		return fmt.Errorf("update sandbox %q: %w", id, err)
	}
	return nil
}
