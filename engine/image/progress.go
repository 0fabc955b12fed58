package image

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Progress tells how far one thing is. Names are shown by clients; Parents make
// them a tree.
type Progress struct {
	Event    string // "downloading", "complete", …
	Name     string
	Parents  []string
	Progress int64 // bytes
	Total    int64 // bytes
	Desc     *ocispec.Descriptor
}

// Watcher is told of progress. It must not block for long.
type Watcher func(Progress)

// watchers are those who watch one transfer; each has joined at its own time.
type watchers struct {
	mu   sync.Mutex
	next int
	all  map[int]Watcher
}

func (w *watchers) add(f Watcher) (leave func()) {
	if f == nil {
		return func() {}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[int]Watcher{}
	}
	n := w.next
	w.next++
	w.all[n] = f
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all, n)
	}
}

func (w *watchers) tell(p Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.all {
		f(p)
	}
}

// meter counts the bytes of things under way and tells of them now and then.
type meter struct {
	tell Watcher
	mu   sync.Mutex
	jobs []*job
}

// job is one thing whose bytes are counted.
type job struct {
	Progress
	done  atomic.Int64
	ended bool
	told  int64
}

// Write lets a job count what is copied through it.
func (j *job) Write(p []byte) (int, error) {
	j.done.Add(int64(len(p)))
	return len(p), nil
}

// start begins a thing that is told of until end.
func (m *meter) start(event string, d ocispec.Descriptor, parents ...string) *job {
	j := &job{Progress: Progress{Event: event, Name: d.Digest.String(), Parents: parents, Total: d.Size, Desc: &d}, told: -1}
	m.mu.Lock()
	m.jobs = append(m.jobs, j)
	m.mu.Unlock()
	m.tell(j.Progress)
	return j
}

// turn changes what is being done to the thing.
func (m *meter) turn(j *job, event string) {
	m.mu.Lock()
	j.Event = event
	p := j.Progress
	m.mu.Unlock()
	p.Progress = j.done.Load()
	m.tell(p)
}

// end tells the last of a thing.
func (m *meter) end(j *job, event string) {
	m.mu.Lock()
	j.ended = true
	j.Event = event
	p := j.Progress
	m.mu.Unlock()
	p.Progress = p.Total
	m.tell(p)
}

func (m *meter) note(event, name string) { m.tell(Progress{Event: event, Name: name}) }

const tick = 100 * time.Millisecond

// run tells of the bytes until ctx ends.
func (m *meter) run(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		m.mu.Lock()
		var news []Progress
		for _, j := range m.jobs {
			if n := j.done.Load(); !j.ended && n != j.told {
				j.told = n
				p := j.Progress
				p.Progress = n
				news = append(news, p)
			}
		}
		m.mu.Unlock()
		for _, p := range news {
			m.tell(p)
		}
	}
}
