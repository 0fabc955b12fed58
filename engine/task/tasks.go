// Package task makes, finds, drives and removes running containers. A task is a
// row, a bundle directory and a shim; the shim alone knows the processes. The
// package owns the bundles, the connections to shims, and one goroutine per shim
// that notices its death. Sandboxes of engine/sandbox share its connections.
package task

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

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
	Shims    *Shims
	// Sandbox finds the shim that holds a sandbox, if one does; nil: none ever does.
	Sandbox func(ns, id string) (shim.Bootstrap, bool)
	Log     *slog.Logger

	ConnectTime time.Duration // to reach a shim after a restart; 0: 5 s
	StateTime   time.Duration // for a shim to answer about one process; 0: 2 s
}

// Tasks knows every task of the daemon.
type Tasks struct {
	cfg   Config
	store *store.Store
	log   *slog.Logger
	names keylock.Map // one create or delete of a task at a time

	mu struct {
		sync.Mutex
		tasks map[key]*Task
	}
	wg   sync.WaitGroup // adoptions
	stop context.CancelFunc
	life context.Context // of the background work; ends with Close
}

type key struct{ ns, id string }

func (k key) String() string { return k.ns + "/" + k.id }

// Task is one that is there.
type Task struct {
	key key
	row store.Task // body and state change only under Tasks.names
	use *Use       // nil until it is adopted, and after it was lost

	shimLog func() // ends the copying of its shim's log; nil if there is none

	settled chan struct{} // closed when a task found at start was adopted or given up
	gone    chan struct{} // closed when the task has been removed
	exit    shim.Exit     // set before gone is closed, if the shim was lost
}

// New returns the tasks, none of them known yet: see Adopt. ctx bounds the
// background work of all tasks.
func New(ctx context.Context, cfg Config) *Tasks {
	if cfg.Sandbox == nil {
		cfg.Sandbox = func(string, string) (shim.Bootstrap, bool) { return shim.Bootstrap{}, false }
	}
	cfg.ConnectTime = cmp.Or(cfg.ConnectTime, 5*time.Second)
	cfg.StateTime = cmp.Or(cfg.StateTime, 2*time.Second)
	t := &Tasks{cfg: cfg, store: cfg.Store, log: cfg.Log}
	t.mu.tasks = map[key]*Task{}
	t.life, t.stop = context.WithCancel(ctx)
	return t
}

// Close leaves all shims running and waits for the background work. The pool of
// shims is closed by whoever made it, before.
func (t *Tasks) Close() error {
	t.stop()
	t.wg.Wait()
	return nil
}

func newTask(row store.Task) *Task {
	return &Task{key: key{row.Namespace, row.ID}, row: row, settled: make(chan struct{}), gone: make(chan struct{})}
}

// find returns a task and its shim. One that is being adopted is waited for.
func (t *Tasks) find(ctx context.Context, ns, id string) (*Task, shim.Task, error) {
	t.mu.Lock()
	task := t.mu.tasks[key{ns, id}]
	t.mu.Unlock()
	if task == nil {
		return nil, shim.Task{}, errs.New(errs.NotFound, "task %q: not found", id)
	}
	select {
	case <-task.settled:
	case <-ctx.Done():
		return nil, shim.Task{}, context.Cause(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.tasks[task.key] != task || task.use == nil {
		return nil, shim.Task{}, errs.New(errs.NotFound, "task %q: not found", id)
	}
	return task, task.api(), nil
}

// api is the task's shim; the caller holds the task's name, or the lock.
func (t *Task) api() shim.Task { return shim.Task{Conn: t.use.Conn, Namespace: t.key.ns, ID: t.key.id} }

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
	if task.shimLog != nil {
		task.shimLog()
		task.shimLog = nil
	}
}
