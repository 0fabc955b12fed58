// Package gc decides when to collect garbage; the store knows how. It owns the
// one goroutine that collects in the background, which runs in Run.
package gc

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/berthd/berth/base/tally"
	"github.com/berthd/berth/store"
)

// Config says when to collect (protocols.md 2.3: gc.v1.scheduler).
type Config struct {
	Pause     float64       // largest share of time that background collections may take; 0: any
	Deletions int           // collect after so many removals; 0: after each
	Mutations int           // collect after so many changes, once something was removed; 0: not for that
	Delay     time.Duration // before a collection that one of these asks for
	Startup   time.Duration // before the first
	Interval  time.Duration // at least this often, for leases and expiry labels that nobody removes
}

// together is the shortest delay: removals come in groups.
const together = 500 * time.Millisecond

// Collector runs collections.
type Collector struct {
	cfg     Config
	store   *store.Store
	log     *slog.Logger
	tallies Tallies
	wake    chan struct{}
	slot    chan struct{} // held by whoever collects

	mu        sync.Mutex
	next      *run // that will see all that was removed until now
	deletions int  // since the last collection began
	mutations int
	pause     time.Time       // no background collection before it
	life      context.Context // of Run
}

// run is one collection, for all who wait for it.
type run struct {
	done chan struct{}
	all  bool // somebody waits for all to go that is garbage when it begins
	got  store.Collected
	err  error
}

// Tallies count collections.
type Tallies struct {
	Runs    tally.Times
	Failed  tally.Counter
	Removed struct{ Content, Snapshots, Images, Leases, Ingests tally.Counter }
}

// Tallies are the numbers of this daemon's run.
func (c *Collector) Tallies() *Tallies { return &c.tallies }

// New returns a collector that does nothing until Run.
func New(cfg Config, st *store.Store, log *slog.Logger) *Collector {
	return &Collector{cfg: cfg, store: st, log: log, wake: make(chan struct{}, 1), slot: make(chan struct{}, 1)}
}

// Soon says that something was removed: a collection follows.
func (c *Collector) Soon() { c.count(1, 0) }

// Changed says that n things were changed.
func (c *Collector) Changed(n int) { c.count(0, n) }

func (c *Collector) count(deletions, mutations int) {
	if deletions > 0 {
		c.store.Defer()
	}
	c.mu.Lock()
	c.deletions += deletions
	c.mutations += mutations
	wanted := c.wanted()
	c.mu.Unlock()
	if !wanted {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// wanted reports whether a threshold is met; c.mu is held.
func (c *Collector) wanted() bool {
	if c.deletions == 0 {
		return false
	}
	return c.deletions >= c.cfg.Deletions || c.cfg.Mutations > 0 && c.mutations >= c.cfg.Mutations
}

// Run collects when asked and at the interval, until ctx ends. Its first
// collection removes what an earlier run left.
func (c *Collector) Run(ctx context.Context) error {
	c.mu.Lock()
	c.life = ctx
	c.mu.Unlock()
	timer := time.NewTimer(c.cfg.Startup)
	defer timer.Stop()
	planned := true // a collection that something asked for
	all := true     // the next is to take what came after that was asked for, too
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
			if !planned { // what comes until then shares it: a steady stream cannot put it off
				planned, all = true, false
				timer.Reset(c.wait())
			}
			continue
		case <-timer.C:
		}
		if _, err := c.share(ctx, all); err != nil && ctx.Err() == nil {
			c.log.Error("garbage collection", "error", err)
		}
		c.mu.Lock()
		planned = c.wanted()
		all = !planned
		c.mu.Unlock()
		if planned {
			timer.Reset(c.wait())
		} else {
			timer.Reset(c.cfg.Interval)
		}
	}
}

// wait is how long to wait before the next background collection.
func (c *Collector) wait() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.cfg.Delay, together, time.Until(c.pause))
}

// Collect collects and waits for it. Calls that wait for a collection to end share
// the next one.
func (c *Collector) Collect(ctx context.Context) (store.Collected, error) { return c.share(ctx, true) }

// share is Collect. Without all, what was made after the last removal stays: a late
// collection takes no more than one at once would have taken.
func (c *Collector) share(ctx context.Context, all bool) (store.Collected, error) {
	c.mu.Lock()
	if c.next == nil {
		c.next = &run{done: make(chan struct{})}
	}
	r := c.next
	r.all = r.all || all
	c.mu.Unlock()
	select {
	case c.slot <- struct{}{}:
		defer func() { <-c.slot }()
	case <-r.done:
		return r.got, r.err
	case <-ctx.Done():
		return store.Collected{}, context.Cause(ctx)
	}
	c.mu.Lock()
	if c.next != r { // another of those who wait was quicker
		c.mu.Unlock()
		<-r.done
		return r.got, r.err
	}
	c.next, c.deletions, c.mutations = nil, 0, 0
	life, how := c.life, c.store.CollectDeferred
	if r.all {
		how = c.store.Collect
	}
	c.mu.Unlock()
	if life == nil {
		life = context.WithoutCancel(ctx) // others wait for it too
	}
	r.got, r.err = c.collect(life, how)
	close(r.done)
	return r.got, r.err
}

func (c *Collector) collect(ctx context.Context, how func(context.Context) (store.Collected, error)) (store.Collected, error) {
	start := time.Now()
	got, err := how(ctx)
	took := time.Since(start)
	c.mu.Lock()
	if c.cfg.Pause > 0 {
		c.pause = time.Now().Add(time.Duration(float64(took) * (1/c.cfg.Pause - 1)))
	}
	c.mu.Unlock()
	if err != nil {
		c.tallies.Failed.Add(1)
	} else {
		c.tallies.Runs.Add(took)
	}
	gone := &c.tallies.Removed
	gone.Content.Add(uint64(got.Content))
	gone.Snapshots.Add(uint64(got.Snapshots))
	gone.Images.Add(uint64(got.Images))
	gone.Leases.Add(uint64(got.Leases))
	gone.Ingests.Add(uint64(got.Ingests))
	if got.Total() > 0 {
		c.log.Info("collected garbage", "content", got.Content, "snapshots", got.Snapshots, "images", got.Images, "leases", got.Leases,
			"ingests", got.Ingests, "elapsed", got.Elapsed)
	}
	return got, err
}

// Remove runs a removal, and then collects: before it returns if sync is set,
// soon otherwise.
func (c *Collector) Remove(ctx context.Context, v store.Scoped, sync bool, fn func(*store.Tx) error) error {
	if err := v.Update(ctx, fn); err != nil {
		return err
	}
	if !sync {
		c.Soon()
		return nil
	}
	_, err := c.Collect(ctx)
	return err
}
