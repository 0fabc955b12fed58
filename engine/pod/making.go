package pod

import (
	"context"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
)

// makeTime bounds the making of one pod or container, whatever its caller's own
// deadline is.
const makeTime = 4 * time.Minute

// makings are the pods and containers that are being made, by name. A repeated
// request joins the one in flight and gets its result. The making goes on when its
// caller has left: the retry finds what was made.
type makings struct {
	mu  sync.Mutex
	all map[string]*making
}

// making is one of them.
type making struct {
	done  chan struct{}
	id    string
	err   error
	mu    sync.Mutex
	stage string
	since time.Time
}

// at notes what is being done now, for those who ask why it takes so long.
func (m *making) at(stage string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stage, m.since = stage, time.Now()
}

// late is the error of a caller whose time is over before the making.
func (m *making) late(what string, cause error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return errs.New(cause, "%s is still being made: %s, for %s; ask again for the result", what, m.stage, time.Since(m.since).Round(time.Millisecond))
}

// do makes what has this name, or waits for whoever does. what is for errors.
func (p *Pods) do(ctx context.Context, name, what string, fn func(context.Context, *making) (string, error)) (string, error) {
	p.makes.mu.Lock()
	if p.makes.all == nil {
		p.makes.all = map[string]*making{}
	}
	m := p.makes.all[name]
	if m == nil {
		m = &making{done: make(chan struct{}), stage: "starting", since: time.Now()}
		p.makes.all[name] = m
		p.wg.Add(1)
		// owner: Close waits for it through wg.
		go func() {
			defer p.wg.Done()
			run, cancel := context.WithTimeout(p.life, makeTime)
			defer cancel()
			m.id, m.err = fn(run, m)
			p.makes.mu.Lock()
			delete(p.makes.all, name)
			p.makes.mu.Unlock()
			close(m.done)
		}()
	}
	p.makes.mu.Unlock()
	select {
	case <-m.done:
		return m.id, m.err
	case <-ctx.Done():
		return "", m.late(what, context.Cause(ctx))
	}
}
