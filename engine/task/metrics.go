package task

import (
	"context"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/filter"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// Metric is one reading of a container's cgroup.
type Metric struct {
	ID   string
	At   time.Time
	Data store.Any
}

// Metrics reads the cgroups of the tasks that match, all at once. A shim that does
// not answer is left out: the others' readings must not wait for it.
func (t *Tasks) Metrics(ctx context.Context, v store.Scoped, filters ...string) ([]Metric, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, cid := range t.ids(v.Namespace()) {
		if f.Match(func(path []string) (string, bool) {
			switch path[0] {
			case "id":
				return cid, true
			case "namespace":
				return v.Namespace(), true
			}
			return "", false
		}) {
			ids = append(ids, cid)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.StateTime)
	defer cancel()
	var mu sync.Mutex
	var out []Metric
	each(ids, func(_ int, cid string) {
		data, err := with(ctx, t, v, "stats of", cid, func(api shim.Task) (store.Any, error) { return api.Stats(ctx) })
		if err != nil {
			if !errs.Is(err, errs.NotFound) {
				t.log.Warn("stats", "task", cid, "error", err)
			}
			return
		}
		mu.Lock()
		defer mu.Unlock()
		out = append(out, Metric{ID: cid, At: time.Now(), Data: data})
	})
	return out, nil
}

const parallelCalls = 16

// each runs fn for every id, several at a time, and waits for all.
func each(ids []string, fn func(i int, id string)) {
	slots := make(chan struct{}, parallelCalls)
	var wg sync.WaitGroup
	for i, cid := range ids {
		slots <- struct{}{}
		wg.Add(1)
		// owner: this function waits for it below.
		go func() {
			defer func() { <-slots; wg.Done() }()
			fn(i, cid)
		}()
	}
	wg.Wait()
}
