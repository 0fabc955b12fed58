package shim

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/shim/ttrpc"
	"github.com/berthd/berth/shim/wire"
)

const (
	eventService = "containerd.services.events.ttrpc.v1.Events"
	maxEvents    = 1024 // waiting; then all but exits are dropped, oldest first
	maxRefusals  = 5    // of one event by a daemon that answers; then it is dropped
	sendLimit    = 5 * time.Second
	firstPause   = 50 * time.Millisecond
	lastPause    = 15 * time.Second
)

// publisher sends events to the daemon, in order, one at a time. While the daemon
// is away they wait, within limits: a daemon that comes back after long asks for
// the state of every task anyway, and exits are in exit.json. It connects when it
// has something to say and hangs up when it has said it, so that an idle shim
// costs the daemon nothing.
type publisher struct {
	address   string // path of the socket; "" drops all events
	namespace string
	log       func(string)

	mu     sync.Mutex
	queue  []waiting
	closed bool
	wake   chan struct{} // there is something to do
	kick   chan struct{} // the daemon may be back
	idle   *sync.Cond    // the queue got empty
	done   chan struct{}
}

type waiting struct {
	envelope wire.Envelope
	exit     bool
}

func newPublisher(address, namespace string, log func(string)) *publisher {
	p := &publisher{
		address: strings.TrimPrefix(address, "unix://"), namespace: namespace, log: log,
		wake: make(chan struct{}, 1), kick: make(chan struct{}, 1), done: make(chan struct{}),
	}
	p.idle = sync.NewCond(&p.mu)
	return p
}

// push adds an event. It never blocks.
func (p *publisher) push(e wire.Event) {
	if p.address == "" {
		return
	}
	_, exit := e.(*wire.TaskExit)
	w := waiting{exit: exit, envelope: wire.Envelope{
		Time: time.Now(), Namespace: p.namespace, Topic: e.Topic(),
		Event: wire.Any{TypeURL: e.TypeURL(), Value: e.Append(nil)},
	}}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	if len(p.queue) >= maxEvents {
		p.dropOne()
	}
	p.queue = append(p.queue, w)
	poke(p.wake)
}

// dropOne makes room: the oldest event that is no exit goes, else the oldest. The
// first of the queue may be on its way already.
func (p *publisher) dropOne() {
	at := 1
	for i, w := range p.queue[1:] {
		if !w.exit {
			at = 1 + i
			break
		}
	}
	p.queue = append(p.queue[:at], p.queue[at+1:]...)
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// retry tries at once if the daemon was away.
func (p *publisher) retry() { poke(p.kick) }

// run sends until close.
func (p *publisher) run() {
	defer close(p.done)
	for range p.wake {
		if !p.drain() {
			return
		}
	}
}

// drain sends all that waits. It returns false after close.
func (p *publisher) drain() bool {
	var client *ttrpc.Client
	defer func() {
		if client != nil {
			client.Close()
		}
	}()
	pause, refusals := firstPause, 0
	for {
		w, ok, closed := p.head()
		if !ok {
			return !closed
		}
		err := p.send(&client, w)
		refused := new(ttrpc.StatusError)
		switch {
		case err == nil:
			p.pop()
			pause, refusals = firstPause, 0
			continue
		case errors.As(err, &refused):
			if refusals++; refusals >= maxRefusals {
				p.log("event " + w.envelope.Topic + " is dropped: " + err.Error())
				p.pop()
				refusals = 0
				continue
			}
		}
		if closed {
			return false // one try for each event is all there is time for
		}
		p.wait(pause)
		pause = min(2*pause, lastPause)
	}
}

func (p *publisher) head() (w waiting, ok, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		p.queue = nil
		p.idle.Broadcast()
		return w, false, p.closed
	}
	return p.queue[0], true, p.closed
}

func (p *publisher) pop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = p.queue[1:]
}

func (p *publisher) wait(pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.kick:
	}
}

func (p *publisher) send(client **ttrpc.Client, w waiting) error {
	ctx, cancel := context.WithTimeout(context.Background(), sendLimit)
	defer cancel()
	if *client == nil {
		c, err := ttrpc.Dial(p.address, sendLimit)
		if err != nil {
			return err
		}
		*client = c
	}
	_, err := (*client).Call(ctx, eventService, "Forward", &w.envelope,
		wire.Pair{Key: "containerd-namespace-ttrpc", Value: p.namespace})
	refused := new(ttrpc.StatusError)
	if err != nil && !errors.As(err, &refused) {
		(*client).Close()
		*client = nil
	}
	return err
}

// close gives waiting events until limit to leave, then ends run.
func (p *publisher) close(limit time.Duration) {
	t := time.AfterFunc(limit, func() {
		p.mu.Lock()
		p.closed = true
		p.idle.Broadcast()
		p.mu.Unlock()
	})
	p.mu.Lock()
	for len(p.queue) > 0 && !p.closed {
		p.idle.Wait()
	}
	p.closed = true
	p.mu.Unlock()
	t.Stop()
	poke(p.wake)
	poke(p.kick)
	<-p.done
}
