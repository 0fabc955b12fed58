package pod

import (
	"context"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

// Event is one change that CRI's event stream tells.
type Event struct {
	Type      cri.ContainerEventType
	At        time.Time
	Namespace string
	ID        string // of the container, or of the pod for its own events
	Pod       string

	PodNow     *Pod // as it was then; nil once it is gone
	Containers []*Container
}

// feed hands events to those who listen, and wakes those who wait for a
// container's end.
type feed struct {
	mu    sync.Mutex
	subs  map[*Listener]struct{}
	waits map[key][]chan struct{}
}

func newFeed() *feed { return &feed{subs: map[*Listener]struct{}{}, waits: map[key][]chan struct{}{}} }

// Listener is one reader of events.
type Listener struct {
	f     *feed
	ns    string
	ready chan struct{}
	queue []Event
	err   error
}

// maxWaiting is how many events may wait for one reader.
const maxWaiting = 10_000

// Listen starts to collect the events of a namespace; Close ends it.
func (p *Pods) Listen(ns string) *Listener {
	l := &Listener{f: p.feed, ns: ns, ready: make(chan struct{}, 1)}
	p.feed.mu.Lock()
	defer p.feed.mu.Unlock()
	p.feed.subs[l] = struct{}{}
	return l
}

// Close ends the listening.
func (l *Listener) Close() {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	delete(l.f.subs, l)
}

// Next waits for events. A reader that is too slow gets ResourceExhausted.
func (l *Listener) Next(ctx context.Context) ([]Event, error) {
	for {
		l.f.mu.Lock()
		got, err := l.queue, l.err
		l.queue = nil
		l.f.mu.Unlock()
		if len(got) > 0 || err != nil {
			return got, err
		}
		select {
		case <-l.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tellPod tells a change of a pod.
func (p *Pods) tellPod(t cri.ContainerEventType, pod *Pod) {
	p.tell(Event{Type: t, At: time.Now(), Namespace: pod.Namespace, ID: pod.ID, Pod: pod.ID, PodNow: pod})
}

// tellContainer tells a change of a container.
func (p *Pods) tellContainer(t cri.ContainerEventType, c *Container) {
	p.tell(Event{Type: t, At: time.Now(), Namespace: c.Namespace, ID: c.ID, Pod: c.Pod})
}

// tell adds the state of the pod to an event, if anybody listens.
func (p *Pods) tell(e Event) {
	if !p.feed.heard() {
		return
	}
	if e.PodNow == nil {
		e.PodNow, _ = p.Pod(e.Namespace, e.Pod) // gone is nil
	}
	e.Containers = p.Containers(e.Namespace, e.Pod)
	p.feed.tell(e)
}

func (f *feed) heard() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.subs) > 0
}

func (f *feed) tell(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for l := range f.subs {
		if l.ns != e.Namespace || l.err != nil {
			continue
		}
		if len(l.queue) >= maxWaiting {
			l.err = errs.New(errs.ResourceExhausted, "%d events wait and are not read: the stream ends", maxWaiting)
		} else {
			l.queue = append(l.queue, e)
		}
		select {
		case l.ready <- struct{}{}:
		default:
		}
	}
}

// waiting is somebody who waits for one container's end.
type waiting struct {
	done   <-chan struct{}
	cancel func()
}

// waitExit starts to wait for an end that comes from now on.
func (f *feed) waitExit(ns, id string) waiting {
	ch := make(chan struct{})
	k := key{ns, id}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waits[k] = append(f.waits[k], ch)
	return waiting{ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		left := f.waits[k][:0]
		for _, c := range f.waits[k] {
			if c != ch {
				left = append(left, c)
			}
		}
		if len(left) == 0 {
			delete(f.waits, k)
		} else {
			f.waits[k] = left
		}
	}}
}

// exit wakes all who wait for a container's end.
func (f *feed) exit(c *Container) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := key{c.Namespace, c.ID}
	for _, ch := range f.waits[k] {
		close(ch)
	}
	delete(f.waits, k)
}

// marks is a small set with a lock of its own.
type marks struct {
	mu  sync.Mutex
	all map[key]bool
}

func (m *marks) add(k key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all == nil {
		m.all = map[key]bool{}
	}
	m.all[k] = true
}

func (m *marks) take(k key) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.all[k]
	delete(m.all, k)
	return was
}
