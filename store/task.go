package store

import (
	"encoding/json"
	"time"

	"github.com/berthd/berth/base/errs"
)

// Task says that a container has, or is getting, a process and where its shim is.
// Whether the process runs, only the shim knows.
//
//	creating ──shim answered──> ready ──delete──> removing ──> (none)
//	    └──────── failed, or the daemon died ───────^
type Task struct {
	Namespace string
	ID        string // of the container
	Runtime   string // the shim: type or path
	State     TaskState
	Boot      string // of the kernel that it ran on
	CreatedAt time.Time
	Body      TaskBody
}

// TaskState is a step of a task's life.
type TaskState string

// The states.
const (
	TaskCreating TaskState = "creating"
	TaskReady    TaskState = "ready"
	TaskRemoving TaskState = "removing"
)

// TaskBody is what must be known to find a task's shim again.
type TaskBody struct {
	Version  int    `json:"version,omitempty"` // of the shim's API
	Address  string `json:"address,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	External bool   `json:"external,omitempty"` // the client gave the address: the shim is not ours to end
	Group    string `json:"group,omitempty"`    // containers of one group share a shim
	Pid      uint32 `json:"pid,omitempty"`      // of the init, in the host's pid namespace
	Options  Any    `json:"options,omitzero"`
}

const taskColumns = `ns, id, runtime, state, boot, created, body`

func scanTask(s scanner) (t Task, err error) {
	var created int64
	var body string
	if err = s.Scan(&t.Namespace, &t.ID, &t.Runtime, &t.State, &t.Boot, &created, &body); err != nil {
		return t, err
	}
	t.CreatedAt = at(created)
	return t, json.Unmarshal([]byte(body), &t.Body)
}

// Task returns a container's task.
func (tx *Tx) Task(cid string) (Task, error) {
	t, err := one(tx, scanTask, `SELECT `+taskColumns+` FROM task WHERE ns = ? AND id = ?`, tx.scope.Namespace, cid)
	return t, missing(err, "task %q", cid)
}

// AllTasks lists the tasks of every namespace, oldest first.
func (tx *Tx) AllTasks() ([]Task, error) {
	return many(tx, scanTask, `SELECT `+taskColumns+` FROM task ORDER BY created`)
}

// CreateTask writes the intent to make a task.
func (tx *Tx) CreateTask(t Task) (Task, error) {
	there, err := tx.exists(`SELECT 1 FROM task WHERE ns = ? AND id = ?`, tx.scope.Namespace, t.ID)
	if err != nil {
		return t, err
	}
	if there {
		return t, errs.New(errs.AlreadyExists, "task %q: already exists", t.ID)
	}
	t.Namespace, t.State, t.Boot, t.CreatedAt = tx.scope.Namespace, TaskCreating, tx.store.cfg.BootID, tx.now
	return t, tx.exec(`INSERT INTO task (`+taskColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?)`, t.Namespace, t.ID, t.Runtime, string(t.State), t.Boot,
		tx.now.UnixNano(), encodeBody(t.Body))
}

// PutTask writes state and body of a task.
func (tx *Tx) PutTask(t Task) error {
	return tx.exec(`UPDATE task SET state = ?, body = ? WHERE ns = ? AND id = ?`, string(t.State), encodeBody(t.Body), tx.scope.Namespace, t.ID)
}

// DeleteTask forgets a task.
func (tx *Tx) DeleteTask(cid string) error {
	return tx.exec(`DELETE FROM task WHERE ns = ? AND id = ?`, tx.scope.Namespace, cid)
}

func encodeBody(b TaskBody) string {
	out, err := json.Marshal(b)
	if err != nil { // plain values cannot fail
		panic(err)
	}
	return string(out)
}

// BootID is the boot that the store was opened in.
func (s *Store) BootID() string { return s.cfg.BootID }
