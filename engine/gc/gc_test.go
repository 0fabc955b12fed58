package gc

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berthd/berth/store"
)

func inBubble(t *testing.T, cfg Config, fn func(*testing.T, *Collector, store.Scoped)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		var c *Collector
		s, err := store.Open(t.Context(), store.Config{Root: t.TempDir(), BootID: "b", Publish: func(all []store.Event) {
			if c != nil {
				c.Changed(len(all))
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		c = New(cfg, s, log)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		fn(t, c, s.In(store.Scope{Namespace: "n"}))
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func runs(c *Collector) int { return int(c.Tallies().Runs.Read().Count) }

func lease(t *testing.T, v store.Scoped, n int) {
	t.Helper()
	if err := v.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.CreateLease(store.Lease{ID: fmt.Sprint("l", n)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func (c *Collector) drop(t *testing.T, v store.Scoped, n int, sync bool) {
	t.Helper()
	if err := c.Remove(t.Context(), v, sync, func(tx *store.Tx) error { return tx.DeleteLease(fmt.Sprint("l", n)) }); err != nil {
		t.Fatal(err)
	}
}

func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestWhen(t *testing.T) {
	inBubble(t, Config{Startup: 100 * time.Millisecond, Interval: time.Hour}, func(t *testing.T, c *Collector, v store.Scoped) {
		after(99 * time.Millisecond)
		if runs(c) != 0 {
			t.Error("before the start's delay")
		}
		after(2 * time.Millisecond)
		if runs(c) != 1 {
			t.Error("not after the start's delay")
		}
		for i := range 3 { // a group shares one
			lease(t, v, i)
			c.drop(t, v, i, false)
		}
		after(time.Minute)
		if runs(c) != 2 {
			t.Errorf("three removals: %d collections, want 1", runs(c)-1)
		}
		after(time.Hour)
		if runs(c) != 3 {
			t.Errorf("interval: %d", runs(c))
		}
	})
}

func TestThresholds(t *testing.T) {
	inBubble(t, Config{Deletions: 3, Mutations: 10, Interval: time.Hour, Delay: 2 * time.Second}, func(t *testing.T, c *Collector, v store.Scoped) {
		after(time.Second)
		base := runs(c)
		lease(t, v, 0)
		lease(t, v, 1)
		lease(t, v, 2)
		c.drop(t, v, 0, false)
		c.drop(t, v, 1, false)
		after(time.Minute)
		if runs(c) != base {
			t.Error("two of three removals")
		}
		c.drop(t, v, 2, false)
		after(1999 * time.Millisecond)
		if runs(c) != base {
			t.Error("before the delay")
		}
		after(2 * time.Millisecond)
		if runs(c) != base+1 {
			t.Error("not after the third")
		}
		c.Changed(100)
		after(time.Minute)
		if runs(c) != base+1 {
			t.Error("changes alone, and nothing was removed")
		}
		lease(t, v, 5)
		c.drop(t, v, 5, false) // one removal and many changes
		after(time.Minute)
		if runs(c) != base+2 {
			t.Error("the threshold of changes is met")
		}
	})
}

// TestSteadyStream: removals that never stop do not put the collection off.
func TestSteadyStream(t *testing.T) {
	inBubble(t, Config{Interval: time.Hour}, func(t *testing.T, c *Collector, v store.Scoped) {
		after(time.Second)
		base := runs(c)
		for range 100 {
			c.Soon()
			after(100 * time.Millisecond)
		}
		if n := runs(c) - base; n < 15 || n > 20 {
			t.Errorf("%d collections in ten seconds", n)
		}
	})
}

// TestPause: what a collection costs is paid off by waiting.
func TestPause(t *testing.T) {
	inBubble(t, Config{Pause: 0.02, Interval: time.Hour}, func(t *testing.T, c *Collector, v store.Scoped) {
		after(time.Second)
		c.mu.Lock()
		c.pause = time.Now().Add(49 * time.Second) // as after one of a second
		c.mu.Unlock()
		base := runs(c)
		c.Soon()
		after(48 * time.Second)
		if runs(c) != base {
			t.Error("within the pause")
		}
		after(2 * time.Second)
		if runs(c) != base+1 {
			t.Error("not after the pause")
		}
		c.Soon()
		lease(t, v, 1)
		c.drop(t, v, 1, true) // who waits for it is not put off
		if runs(c) != base+2 {
			t.Error("a synchronous removal was put off")
		}
	})
}

// TestShared: callers that wait at the same time share a collection, and each gets one
// that began after its removal.
func TestShared(t *testing.T) {
	inBubble(t, Config{Interval: time.Hour, Startup: time.Hour}, func(t *testing.T, c *Collector, v store.Scoped) {
		for i := range 20 {
			lease(t, v, i)
		}
		c.slot <- struct{}{} // one is under way
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				c.drop(t, v, i, true)
			}()
		}
		synctest.Wait()
		if runs(c) != 0 {
			t.Error("one ran beside another")
		}
		<-c.slot
		wg.Wait()
		if runs(c) != 1 {
			t.Errorf("%d collections for 20 callers, want 1", runs(c))
		}
	})
}
