// Package restart keeps containers running whose labels ask for it, as containerd's
// restart monitor does: containerd.io/restart.status says what is wanted, the policy
// when. It also removes those that are to go with their process (`berth run -d --rm`).
// It acts when a process ends and looks at all such containers now and then. It
// owns its back-off times and the goroutines of Run; the containers' rows and tasks
// belong to others, and it touches none without such a label.
//
//	              ┌─ ran 10 s: first delay ─┐
//	running ──exit──> waiting (delay) ──> start again ──> running
//	   ^                 │ the label says stopped, the policy says no,
//	   └── others ───────┴ somebody else acts: hands off for a while
package restart

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/store"
)

// Tasks is what is done with tasks.
type Tasks interface {
	Get(ctx context.Context, v store.Scoped, cid, execID string) (task.State, error)
	Create(ctx context.Context, v store.Scoped, r task.CreateRequest) (uint32, error)
	Start(ctx context.Context, v store.Scoped, cid, execID string) (uint32, error)
	Kill(ctx context.Context, v store.Scoped, cid, execID string, signal uint32, all bool) error
	Wait(ctx context.Context, v store.Scoped, cid, execID string) (task.Exit, error)
	Delete(ctx context.Context, v store.Scoped, cid string) (task.Exit, error)
}

// Config is what the keeper works with.
type Config struct {
	Store    *store.Store
	Tasks    Tasks
	Exchange *event.Exchange
	GC       *gc.Collector
	// RemovePod removes a pod with its network; nil: there are no pods.
	RemovePod func(ctx context.Context, namespace, id string) error
	Dirs      string        // containers' directories are below it
	Interval  time.Duration // between two looks at all; also how long a change of a row keeps us away
	Log       *slog.Logger
}

// The delays before a start: the first one, doubled with each container that did not
// run for long, up to the last.
const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = time.Minute
	longRun    = 10 * time.Second
)

// actTime bounds one start or stop, and atOnce how many run side by side.
const (
	actTime = time.Minute
	atOnce  = 8
)

type key struct{ ns, id string }

// watched is what is known of one container, beyond its row.
type watched struct {
	due     time.Time // of the next look; zero: none is planned
	delay   time.Duration
	started time.Time
	ended   time.Time // of its last process that ended, as far as seen
	status  uint32    // of that end
	deleted time.Time // when its task was deleted
	tried   time.Time // when we last began or gave up to start it
	busy    bool
	made    bool // its task was made here
}

// Keeper restarts containers.
type Keeper struct {
	cfg Config

	mu   sync.Mutex
	all  map[key]*watched
	wake chan struct{}
}

// New returns a keeper that does nothing until Run.
func New(cfg Config) *Keeper {
	return &Keeper{cfg: cfg, all: map[key]*watched{}, wake: make(chan struct{}, 1)}
}

// Run keeps containers running until ctx ends, and then waits for what it does.
func (k *Keeper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sub, err := k.subscribe()
	if err != nil {
		return err
	}
	wg.Add(1)
	// owner: Run waits for it through wg.
	go func() {
		defer wg.Done()
		k.listen(ctx, sub)
	}()
	slots := make(chan struct{}, atOnce)
	scan := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		case <-timer.C:
		}
		if now := time.Now(); !now.Before(scan) {
			if err := k.scan(ctx); err != nil && ctx.Err() == nil {
				k.cfg.Log.Error("look for containers to restart", "error", err)
			}
			scan = now.Add(k.cfg.Interval)
		}
		next := scan
		for _, id := range k.ripe(time.Now(), &next) {
			wg.Add(1)
			// owner: Run waits for it through wg.
			go func() {
				defer wg.Done()
				select {
				case slots <- struct{}{}:
					k.look(ctx, id)
					<-slots
				case <-ctx.Done():
				}
			}()
		}
		timer.Reset(time.Until(next))
	}
}

func (k *Keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// ripe takes the containers whose time has come; next becomes the time of the first
// of the others, if that is earlier.
func (k *Keeper) ripe(now time.Time, next *time.Time) (out []key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, w := range k.all {
		switch {
		case w.due.IsZero() || w.busy:
		case !w.due.After(now):
			w.due, w.busy = time.Time{}, true
			out = append(out, id)
		case w.due.Before(*next):
			*next = w.due
		}
	}
	return out
}

// scan plans a look at every container with a status label.
func (k *Keeper) scan(ctx context.Context) error {
	rows, err := store.Get(ctx, k.cfg.Store.In(store.Scope{}), func(tx *store.Tx) ([]store.Owner, error) {
		kept, err := tx.ContainersWith(label.RestartStatus)
		if err != nil {
			return nil, err
		}
		gone, err := tx.ContainersWith(label.AutoRemove)
		return append(kept, gone...), err
	})
	if err != nil {
		return err
	}
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range rows {
		id := key{r.Namespace, r.ID}
		w := k.all[id]
		if w == nil {
			w = &watched{}
			k.all[id] = w
		}
		if w.due.IsZero() && !w.busy {
			w.due = now
		}
	}
	return nil
}

// look compares what a container shall do with what it does, and acts.
func (k *Keeper) look(ctx context.Context, id key) {
	k.mu.Lock()
	w := *k.all[id]
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, actTime)
	defer cancel()
	v := k.cfg.Store.In(store.Scope{Namespace: id.ns})
	c, err := store.Get(ctx, v, func(tx *store.Tx) (store.Container, error) { return tx.Container(id.id) })
	switch {
	case errs.Is(err, errs.NotFound):
		k.orphan(ctx, v, id, w)
		k.forget(id)
		return
	case err != nil:
		k.failed(id, "read the container", err)
		return
	}
	step, err := k.decide(ctx, v, c, w)
	switch {
	case err != nil:
		k.failed(id, "find out how it is", err)
	case step.forget:
		k.forget(id)
	case step.start:
		err := k.start(ctx, v, c)
		k.mu.Lock()
		k.all[id].tried, k.all[id].made = time.Now(), true
		k.mu.Unlock()
		if err != nil {
			k.failed(id, "start it again", err)
			return
		}
		k.done(id, func(w *watched) { w.started = time.Now() })
	case step.remove:
		if err := k.remove(ctx, v, c); err != nil {
			k.failed(id, "remove it", err)
			return
		}
		k.forget(id)
	case step.stop:
		if err := k.stop(ctx, v, c.ID); err != nil {
			k.failed(id, "stop it", err)
			return
		}
		k.done(id, nil)
	default:
		k.done(id, func(w *watched) {
			if !step.wait.IsZero() && (w.due.IsZero() || step.wait.Before(w.due)) {
				w.due = step.wait
			}
		})
	}
}

// done ends a look.
func (k *Keeper) done(id key, fn func(*watched)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if w := k.all[id]; w != nil {
		w.busy = false
		if fn != nil {
			fn(w)
		}
	}
	k.poke()
}

func (k *Keeper) failed(id key, what string, err error) {
	k.done(id, func(w *watched) {
		w.delay = longer(w.delay)
		w.due = time.Now().Add(w.delay)
		k.cfg.Log.Warn("restart", "container", id.ns+"/"+id.id, "doing", what, "error", err, "again_in", w.delay)
	})
}

func (k *Keeper) forget(id key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.all, id)
}

func longer(d time.Duration) time.Duration { return min(max(2*d, firstDelay), lastDelay) }
