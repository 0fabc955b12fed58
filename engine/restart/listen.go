package restart

import (
	"context"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/event"
)

// topics are the events that can ask for a look. Exits of execs are among them, and
// dropped by what they say.
const topics = `topic~="^/(tasks/(exit|delete|start)|containers/(update|delete))$"`

func (k *Keeper) subscribe() (*event.Subscription, error) { return k.cfg.Exchange.Subscribe(topics) }

// listen takes in events until ctx ends. A queue that overflowed is begun anew; the
// next look at all finds what was missed.
func (k *Keeper) listen(ctx context.Context, sub *event.Subscription) {
	defer func() { sub.Close() }()
	for {
		got, err := sub.Next(ctx)
		for _, e := range got {
			k.note(e)
		}
		if ctx.Err() != nil {
			return
		}
		if errs.Is(err, errs.ResourceExhausted) {
			k.cfg.Log.Warn("restart", "doing", "read events", "error", err)
			sub.Close()
			if sub, err = k.subscribe(); err != nil {
				k.cfg.Log.Error("exits are noticed late from now on", "error", err)
				return
			}
		}
	}
}

// note plans a look for what an event says.
func (k *Keeper) note(e event.Envelope) {
	what, ok := e.ContainerOf()
	if !ok {
		return
	}
	ended, exec, exited := e.TaskExited()
	if e.Topic == "/tasks/exit" && (!exited || exec != "") {
		return
	}
	id := key{e.Namespace, what}
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.all[id]
	if w == nil {
		if e.Topic != "/containers/update" && e.Topic != "/tasks/exit" {
			return // nothing that is ours can begin with it
		}
		w = &watched{}
		k.all[id] = w
	}
	switch e.Topic {
	case "/tasks/start":
		w.started = e.Time
		return
	case "/tasks/delete":
		w.deleted = e.Time
		w.soon(now.Add(k.cfg.Interval))
	case "/tasks/exit":
		w.ended, w.status = e.Time, ended.Status
		if w.delay = longer(w.delay); !w.started.IsZero() && e.Time.Sub(w.started) >= longRun {
			w.delay = firstDelay
		}
		w.due = now.Add(w.delay)
	case "/containers/update":
		if !w.busy && e.Time.After(w.tried.Add(echo)) { // else it is our own count
			w.soon(now)
		}
	case "/containers/delete":
		w.soon(now)
	}
	k.poke()
}

// soon plans a look at the latest at a time.
func (w *watched) soon(at time.Time) {
	if w.due.IsZero() || at.Before(w.due) {
		w.due = at
	}
}
