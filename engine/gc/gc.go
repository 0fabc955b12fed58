// Package gc decides when to collect garbage; the store knows how. It owns the
// one goroutine that collects in the background, which runs in Run.
package gc

import (
	"context"
	"log/slog"
	"time"

	"github.com/berthd/berth/store"
)

// Config says when to collect.
type Config struct {
	Delay    time.Duration // after something was removed, so that several removals share one collection
	Interval time.Duration // at least this often, for leases and expiry labels that nobody removes
}

// Collector runs collections.
type Collector struct {
	cfg   Config
	store *store.Store
	log   *slog.Logger
	wake  chan struct{}
}

// New returns a collector that does nothing until Run.
func New(cfg Config, st *store.Store, log *slog.Logger) *Collector {
	return &Collector{cfg: cfg, store: st, log: log, wake: make(chan struct{}, 1)}
}

// Soon asks for a collection after the delay.
func (c *Collector) Soon() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run collects when asked and at the interval, until ctx ends. Its first
// collection removes what an earlier run left.
func (c *Collector) Run(ctx context.Context) error {
	timer := time.NewTimer(c.cfg.Delay)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
			timer.Reset(c.cfg.Delay)
			continue
		case <-timer.C:
		}
		if _, err := c.Collect(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("garbage collection", "error", err)
		}
		timer.Reset(c.cfg.Interval)
	}
}

// Collect collects now and waits for it.
func (c *Collector) Collect(ctx context.Context) (store.Collected, error) {
	got, err := c.store.Collect(ctx)
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
