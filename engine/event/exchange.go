// Package event takes events in and hands them to those who subscribed. It keeps
// no history. It owns the subscribers' queues; it starts no goroutine, and a
// publisher never waits for a reader.
package event

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/filter"
	"github.com/berthd/berth/base/id"
)

// Envelope is one event on its way (containerd.types.Envelope).
type Envelope struct {
	Time      time.Time
	Namespace string
	Topic     string
	Event     *anypb.Any
}

// MaxWaiting is how many events may wait for one slow reader; then its
// subscription ends with ResourceExhausted, so that it subscribes anew and reads
// the present state, instead of eating the daemon's memory.
const MaxWaiting = 65536

// Exchange hands events to subscribers, to each in the order of publishing.
type Exchange struct {
	mu   sync.Mutex
	subs map[*Subscription]struct{}
}

// New returns an exchange without subscribers.
func New() *Exchange { return &Exchange{subs: map[*Subscription]struct{}{}} }

// Subscription is one reader's queue.
type Subscription struct {
	x      *Exchange
	filter filter.Filter
	ready  chan struct{} // holds a token when something waits
	mu     sync.Mutex
	queue  []Envelope
	err    error
}

// CheckTopic says whether a topic is well formed: "/" before each component, each
// an identifier.
func CheckTopic(topic string) error {
	if !strings.HasPrefix(topic, "/") || topic == "/" {
		return errs.New(errs.InvalidArgument, "topic %q must start with '/' and have at least one component", topic)
	}
	for _, part := range strings.Split(topic[1:], "/") {
		if err := id.Check("component of topic", part); err != nil {
			return err
		}
	}
	return nil
}

// Publish checks an envelope and hands it to everybody whose filter matches.
func (x *Exchange) Publish(e Envelope) error {
	if err := id.Check("namespace", e.Namespace); err != nil {
		return err
	}
	if err := CheckTopic(e.Topic); err != nil {
		return err
	}
	if e.Time.IsZero() {
		return errs.New(errs.InvalidArgument, "event %s: the time must be set", e.Topic)
	}
	fields := e.fields()
	x.mu.Lock()
	defer x.mu.Unlock()
	for s := range x.subs {
		if s.filter.Match(fields) {
			s.put(e)
		}
	}
	return nil
}

func (s *Subscription) put(e Envelope) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return
	case len(s.queue) >= MaxWaiting:
		s.err = errs.New(errs.ResourceExhausted, "%d events wait and are not read: the subscription ends", MaxWaiting)
	default:
		s.queue = append(s.queue, e)
	}
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Subscribe starts a queue for events that match any of the filters, of all
// namespaces unless a filter says otherwise. The caller ends it with Close.
func (x *Exchange) Subscribe(filters ...string) (*Subscription, error) {
	f, err := filter.Parse(filters...)
	if err != nil {
		return nil, err
	}
	s := &Subscription{x: x, filter: f, ready: make(chan struct{}, 1)}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.subs[s] = struct{}{}
	return s, nil
}

// Next waits for events and returns all that wait. It fails when ctx ends or when
// the reader was too slow.
func (s *Subscription) Next(ctx context.Context) ([]Envelope, error) {
	for {
		s.mu.Lock()
		got, err := s.queue, s.err
		s.queue = nil
		s.mu.Unlock()
		if len(got) > 0 || err != nil {
			return got, err
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.x.mu.Lock()
	defer s.x.mu.Unlock()
	delete(s.x.subs, s)
}
