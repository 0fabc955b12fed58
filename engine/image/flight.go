package image

import (
	"context"
	"sync"

	"github.com/berthd/berth/store"
)

// flights lets callers who ask for the same thing at the same time share one
// transfer. The transfer ends early only when the last of them has gone.
type flights struct {
	mu  sync.Mutex
	all map[string]*flight
}

type flight struct {
	cancel  context.CancelFunc
	waiters int
	watch   watchers
	done    chan struct{}
	image   store.Image
	err     error
}

// do runs fn for the first caller of a key; the others wait for its result.
// progress may be nil.
func (f *flights) do(ctx context.Context, key string, progress Watcher, fn func(context.Context, Watcher) (store.Image, error)) (store.Image, error) {
	f.mu.Lock()
	if f.all == nil {
		f.all = map[string]*flight{}
	}
	fl := f.all[key]
	if fl == nil {
		run, cancel := context.WithCancel(context.WithoutCancel(ctx))
		fl = &flight{cancel: cancel, done: make(chan struct{})}
		f.all[key] = fl
		// owner: the last caller in do waits for done, or cancels it.
		go func() {
			defer cancel()
			fl.image, fl.err = fn(run, fl.watch.tell)
			f.forget(key, fl)
			close(fl.done)
		}()
	}
	fl.waiters++
	leave := fl.watch.add(progress)
	f.mu.Unlock()
	defer leave()

	select {
	case <-fl.done:
		return fl.image, fl.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	fl.waiters--
	last := fl.waiters == 0
	if last && f.all[key] == fl {
		delete(f.all, key) // who comes now starts anew
	}
	f.mu.Unlock()
	if last {
		fl.cancel()
		<-fl.done
	}
	return store.Image{}, context.Cause(ctx)
}

func (f *flights) forget(key string, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all[key] == fl {
		delete(f.all, key)
	}
}
