// Package task makes, finds, drives and removes running containers. A task is a
// row, a bundle directory and a shim; the shim alone knows the processes. The
// package owns the bundles, the connections to shims, and one goroutine per shim
// that notices its death.
package task

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/keylock"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/host/shim"
	"github.com/berthd/berth/store"
)

// Config is what tasks are made of.
type Config struct {
	State    string // directory of the bundles; lost at reboot
	Work     string // directory of what a shim may keep over its restart
	Store    *store.Store
	Exchange *event.Exchange
	Launcher *shim.Launcher
	Log      *slog.Logger
}

// Tasks knows every task of the daemon.
type Tasks struct {
	cfg   Config
	store *store.Store
	log   *slog.Logger
	names keylock.Map // one create or delete of a task at a time

	mu struct {
		sync.Mutex
		tasks  map[key]*Task
		conns  map[string]*shared // by address
		closed bool
	}
	wg   sync.WaitGroup // watchers and adoptions
	stop context.CancelFunc
	life context.Context // of the background work; ends with Close
}

type key struct{ ns, id string }

func (k key) String() string { return k.ns + "/" + k.id }

// shared is a connection that several tasks of one shim use.
type shared struct {
	conn  *shim.Conn
	users int
}

// Task is one that is there.
type Task struct {
	key  key
	row  store.Task // body and state change only under Tasks.names
	conn *shim.Conn // nil until it is adopted, and after it was lost

	settled chan struct{} // closed when a task found at start was adopted or given up
	gone    chan struct{} // closed when the task has been removed
	exit    shim.Exit     // set before gone is closed, if the shim was lost
}

// New returns the tasks, none of them known yet: see Adopt. ctx bounds the
// background work of all tasks.
func New(ctx context.Context, cfg Config) *Tasks {
	t := &Tasks{cfg: cfg, store: cfg.Store, log: cfg.Log}
	t.mu.tasks, t.mu.conns = map[key]*Task{}, map[string]*shared{}
	t.life, t.stop = context.WithCancel(ctx)
	return t
}

// Close leaves all shims running, closes the connections to them and waits for
// the background work.
func (t *Tasks) Close() error {
	t.mu.Lock()
	t.mu.closed = true
	var all []error
	for _, c := range t.mu.conns {
		all = append(all, c.conn.Close())
	}
	t.mu.Unlock()
	t.stop()
	t.wg.Wait()
	return errors.Join(all...)
}

func newTask(row store.Task) *Task {
	return &Task{key: key{row.Namespace, row.ID}, row: row, settled: make(chan struct{}), gone: make(chan struct{})}
}

// find returns a task whose shim is connected. One that is being adopted is
// waited for.
func (t *Tasks) find(ctx context.Context, ns, id string) (*Task, error) {
	t.mu.Lock()
	task := t.mu.tasks[key{ns, id}]
	t.mu.Unlock()
	if task == nil {
		return nil, errs.New(errs.NotFound, "task %q: not found", id)
	}
	select {
	case <-task.settled:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.tasks[task.key] != task || task.conn == nil {
		return nil, errs.New(errs.NotFound, "task %q: not found", id)
	}
	return task, nil
}

func (t *Task) api() shim.Task { return shim.Task{Conn: t.conn, Namespace: t.key.ns, ID: t.key.id} }

// connect returns a connection to a shim, the one that is there if its address is
// known. The first user starts a watcher.
func (t *Tasks) connect(ctx context.Context, b shim.Bootstrap) (*shim.Conn, error) {
	if c := t.reuse(b.Address); c != nil {
		return c, nil
	}
	c, err := shim.Connect(ctx, b)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.mu.conns[b.Address]; s != nil || t.mu.closed { // somebody else was quicker
		err := c.Close()
		if s == nil {
			return nil, errors.Join(err, errs.New(errs.Unavailable, "the daemon is stopping"))
		}
		s.users++
		return s.conn, err
	}
	t.mu.conns[b.Address] = &shared{conn: c, users: 1}
	t.wg.Add(1)
	// owner: Close waits for it through wg; it ends with the connection.
	go t.watch(c)
	return c, nil
}

func (t *Tasks) reuse(address string) *shim.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.mu.conns[address]
	if s == nil {
		return nil
	}
	s.users++
	return s.conn
}

// release gives up one use of a connection; the last closes it. It reports
// whether it was the last.
func (t *Tasks) release(c *shim.Conn) (last bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	address := c.Bootstrap().Address
	s := t.mu.conns[address]
	if s == nil || s.conn != c {
		return false, nil // it was lost and forgotten already
	}
	if s.users--; s.users > 0 {
		return false, nil
	}
	delete(t.mu.conns, address)
	return true, c.Close()
}

// watch waits for the end of a shim. An end that nobody asked for means that it
// died: its tasks are cleaned up.
func (t *Tasks) watch(c *shim.Conn) {
	defer t.wg.Done()
	<-c.Done()
	t.mu.Lock()
	address := c.Bootstrap().Address
	s := t.mu.conns[address]
	if t.mu.closed || s == nil || s.conn != c {
		t.mu.Unlock()
		return
	}
	delete(t.mu.conns, address)
	var lost []*Task
	for _, task := range t.mu.tasks {
		if task.conn == c {
			lost = append(lost, task)
		}
	}
	t.mu.Unlock()
	for _, task := range lost {
		t.lost(task)
	}
}

func (t *Tasks) put(task *Task) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.tasks[task.key] = task
}

// forget takes a task out of the list, once.
func (t *Tasks) forget(task *Task) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.tasks[task.key] == task {
		delete(t.mu.tasks, task.key)
		close(task.gone)
	}
}
