package shim

import (
	"sync"
	"time"

	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/shim/wire"
)

// oomWatch tells of processes that the kernel kills for want of memory: each time
// the counter of the container's group has grown. An event of version 1 comes
// before the kill, so the counter is read again a little later; the last word is
// verdict's, which reads it after the exit and before that is told.
type oomWatch struct {
	c    *container
	oom  *cgroup.OOM
	stop chan struct{}
	done chan struct{}

	mu   sync.Mutex
	seen uint64
}

func watchOOM(c *container, g *cgroup.Group) (*oomWatch, error) {
	o, err := g.WatchOOM()
	if err != nil {
		return nil, err
	}
	w := &oomWatch{c: c, oom: o, stop: make(chan struct{}), done: make(chan struct{})}
	// owner: close waits for it
	go w.run()
	return w, nil
}

func (w *oomWatch) run() {
	defer close(w.done)
	for w.oom.Next() == nil {
		for _, pause := range []time.Duration{0, 20 * time.Millisecond, 200 * time.Millisecond} {
			if !w.sleep(pause) {
				return
			}
			if w.look() {
				break
			}
		}
	}
}

func (w *oomWatch) sleep(d time.Duration) bool {
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.stop:
		return false
	}
}

// look reads the counter and tells if it has grown. It reports whether it has, or
// whether it cannot be read any more.
func (w *oomWatch) look() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.oom.Kills()
	if err != nil {
		return true
	}
	if n <= w.seen {
		return false
	}
	w.seen = n
	w.c.shim.events.push(wire.TaskOOM(w.c.id))
	return true
}

// verdict says whether the kernel has killed any process of the container for
// want of memory. It is called when the first process is dead.
func (w *oomWatch) verdict() bool {
	if w == nil {
		return false
	}
	w.look()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen > 0
}

func (w *oomWatch) close() {
	if w == nil {
		return
	}
	close(w.stop)
	w.oom.Close()
	<-w.done
}
