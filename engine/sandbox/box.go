package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/base/keylock"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// Controller is the sandboxer of boxes, as clients of the API name it.
const Controller = "shim"

// boxDir is where the bundles of boxes are, below the state directory.
const boxDir = "io.containerd.sandbox.controller.v1.shim"

// cleanupTime bounds the undoing of one box; connectTime the search for its shim
// after a restart.
const (
	cleanupTime = time.Minute
	connectTime = 5 * time.Second
)

// BoxConfig is what boxes are made of.
type BoxConfig struct {
	State    string // directory of the bundles; lost at reboot
	Store    *store.Store
	Exchange *event.Exchange
	Launcher *shim.Launcher
	Shims    *task.Shims
	Log      *slog.Logger
}

// Boxes are the sandboxes that clients of containerd's sandbox API have shims make
// and hold. Pods are not among them. It owns one goroutine per box that is found
// at start; the deaths of shims come from the pool of shims.
//
//	creating ──shim has made it──> ready ──Shutdown, shim died──> (none)
//	    └──────── failed, or the daemon died ─────────────────────^
type Boxes struct {
	cfg   BoxConfig
	names keylock.Map
	mu    sync.Mutex
	all   map[string]*box // by namespace and id
	life  context.Context // of the background work; ends with Close
	stop  context.CancelFunc
	wg    sync.WaitGroup
}

type box struct {
	row     store.Box
	use     *task.Use     // nil once it was lost
	settled chan struct{} // closed when a box found at start was connected or given up
	gone    chan struct{} // closed when it has been removed
}

func (b *box) key() string { return b.row.Namespace + "/" + b.row.ID }

func (b *box) api() shim.Sandbox {
	return shim.Sandbox{Conn: b.use.Conn, Namespace: b.row.Namespace, ID: b.row.ID}
}

// NewBoxes returns the boxes, none of them known yet: see Adopt. ctx bounds the
// background work.
func NewBoxes(ctx context.Context, cfg BoxConfig) *Boxes {
	b := &Boxes{cfg: cfg, all: map[string]*box{}}
	b.life, b.stop = context.WithCancel(ctx)
	return b
}

// Close leaves the shims running and waits for the background work.
func (b *Boxes) Close() error {
	b.stop()
	b.wg.Wait()
	return nil
}

func (b *Boxes) bundle(row store.Box) string {
	return filepath.Join(b.cfg.State, boxDir, row.Namespace, row.ID)
}

func (b *Boxes) params(row store.Box) shim.Params {
	return shim.Params{Namespace: row.Namespace, ID: row.ID, Bundle: b.bundle(row), Runtime: row.Runtime, Options: row.Body.Options}
}

// BoxRequest asks for a sandbox.
type BoxRequest struct {
	ID          string
	Runtime     string
	Options     store.Any // of the runtime
	Spec        store.Any // written to config.json; may be empty
	Rootfs      []spec.Mount
	Config      store.Any // handed to the shim as it is
	NetNS       string
	Annotations map[string]string
}

// Create starts a shim and has it make a sandbox. On any failure everything is
// taken back.
func (b *Boxes) Create(ctx context.Context, v store.Scoped, r BoxRequest) error {
	unlock, err := b.names.Lock(ctx, v.Namespace()+"/"+r.ID)
	if err != nil {
		return fmt.Errorf("create sandbox %q: another request for it is under way: %w", r.ID, err)
	}
	defer unlock()
	row, err := store.Set(ctx, v, func(tx *store.Tx) (store.Box, error) {
		if r.Runtime == "" { // older clients send no more than the id
			meta, err := tx.Sandbox(r.ID)
			if err != nil {
				return store.Box{}, err
			}
			r.Runtime, r.Options, r.Spec = meta.Runtime, meta.Options, meta.Spec
		}
		return tx.CreateBox(store.Box{ID: r.ID, Runtime: r.Runtime, Body: store.TaskBody{Options: r.Options}})
	})
	if err != nil {
		return err
	}
	failpoint.Here("box.intent")
	x := &box{row: row, settled: make(chan struct{}), gone: make(chan struct{})}
	close(x.settled)
	if err := b.make(ctx, v, x, r); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		return errors.Join(fmt.Errorf("create sandbox %q: %w", r.ID, err), b.teardown(ctx, x))
	}
	b.mu.Lock()
	b.all[x.key()] = x
	b.mu.Unlock()
	return b.cfg.Exchange.SandboxCreated(v.Namespace(), r.ID)
}

func (b *Boxes) make(ctx context.Context, v store.Scoped, x *box, r BoxRequest) error {
	dir := b.bundle(x.row)
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(filepath.Join(dir, "rootfs"), 0o711)); err != nil {
		return err
	}
	if !r.Spec.Empty() {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), r.Spec.Value, 0o600); err != nil {
			return err
		}
	}
	found, err := b.cfg.Launcher.Start(ctx, b.params(x.row))
	if err != nil {
		return err
	}
	failpoint.Here("box.shim")
	body := &x.row.Body
	body.Version, body.Address, body.Protocol = found.Version, found.Address, found.Protocol
	if err := v.Update(ctx, func(tx *store.Tx) error { return tx.PutBox(x.row) }); err != nil {
		return err
	}
	if x.use, err = b.cfg.Shims.Connect(ctx, found, func() { b.lost(x) }); err != nil {
		return err
	}
	err = x.api().Create(ctx, shim.SandboxRequest{Bundle: dir, Rootfs: r.Rootfs, Options: r.Config, NetNS: r.NetNS, Annotations: r.Annotations})
	if err != nil {
		return err
	}
	x.row.State = store.TaskReady
	return v.Update(ctx, func(tx *store.Tx) error { return tx.PutBox(x.row) })
}

// teardown is the one way down for a box, whatever there is of it. It may be
// called again.
func (b *Boxes) teardown(ctx context.Context, x *box) error {
	if err := b.endShim(ctx, x); err != nil {
		return err
	}
	dir := b.bundle(x.row)
	rootfs := filepath.Join(dir, "rootfs")
	if err := mount.Detach(rootfs); err != nil {
		return err
	}
	if err := errs.Ignore(os.Remove(rootfs), os.ErrNotExist); err != nil {
		b.cfg.Log.Warn("the root file system directory of a sandbox is not empty", "sandbox", x.key(), "error", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove bundle of sandbox %q: %w", x.row.ID, err)
	}
	err := b.cfg.Store.In(store.Scope{Namespace: x.row.Namespace}).Update(ctx, func(tx *store.Tx) error { return tx.DeleteBox(x.row.ID) })
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil && b.all[x.key()] == x {
		delete(b.all, x.key())
		close(x.gone)
	}
	return err
}

// endShim ends the sandbox through its shim if that answers, else by the shim's
// delete command.
func (b *Boxes) endShim(ctx context.Context, x *box) error {
	b.mu.Lock()
	u := x.use
	b.mu.Unlock()
	if u == nil && x.row.Body.Address != "" && x.row.Boot == b.cfg.Store.BootID() {
		if c, err := b.cfg.Shims.Connect(ctx, bootstrap(x.row), func() {}); err == nil {
			u = c
		}
	}
	if u != nil {
		err := shim.Sandbox{Conn: u.Conn, Namespace: x.row.Namespace, ID: x.row.ID}.Shutdown(ctx)
		b.mu.Lock()
		x.use = nil
		b.mu.Unlock()
		_, rerr := b.cfg.Shims.Release(u)
		if err == nil {
			return rerr
		}
		if !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Unimplemented) {
			return errors.Join(fmt.Errorf("shut down sandbox %q: %w", x.row.ID, err), rerr)
		}
	}
	if x.row.Boot != b.cfg.Store.BootID() || x.row.Body.Address == "" && x.row.State != store.TaskCreating {
		return nil
	}
	if _, err := b.cfg.Launcher.Find(x.row.Runtime); err != nil && x.row.Body.Address == "" {
		return nil // its program is not there: nothing was started
	}
	_, err := b.cfg.Launcher.Delete(ctx, b.params(x.row))
	return err
}

func bootstrap(row store.Box) shim.Bootstrap {
	return shim.Bootstrap{Version: row.Body.Version, Address: row.Body.Address, Protocol: row.Body.Protocol}
}

// Shim is the shim that holds a sandbox, for the containers in it.
func (b *Boxes) Shim(ns, id string) (shim.Bootstrap, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if x := b.all[ns+"/"+id]; x != nil && x.use != nil {
		return x.use.Conn.Bootstrap(), true
	}
	return shim.Bootstrap{}, false
}
