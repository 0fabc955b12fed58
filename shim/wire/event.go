package wire

import (
	"time"

	"github.com/berthd/berth/base/spec"
)

// The messages of containerd.events that a shim publishes, and their envelope.

// Event is a message with a topic and a type name.
type Event interface {
	Message
	Topic() string
	TypeURL() string
}

// Envelope is containerd.types.Envelope.
type Envelope struct {
	Time      time.Time
	Namespace string
	Topic     string
	Event     Any
}

// Append writes the ForwardRequest that holds e behind b.
func (e *Envelope) Append(b []byte) []byte {
	return putNested(b, 1, func(b []byte) []byte {
		b = putTime(b, 1, e.Time)
		b = putText(b, 2, e.Namespace)
		b = putText(b, 3, e.Topic)
		return putAny(b, 4, e.Event)
	})
}

// TaskCreate says that a container was created.
type TaskCreate struct {
	ContainerID string
	Bundle      string
	Rootfs      []spec.Mount
	Stdio       Stdio
	Checkpoint  string
	Pid         uint32
}

// Topic is where subscribers look for it.
func (*TaskCreate) Topic() string { return "/tasks/create" }

// TypeURL names the message in an Any.
func (*TaskCreate) TypeURL() string { return "containerd.events.TaskCreate" }

// Append writes e behind b.
func (e *TaskCreate) Append(b []byte) []byte {
	b = putText(b, 1, e.ContainerID)
	b = putText(b, 2, e.Bundle)
	b = putMounts(b, 3, e.Rootfs)
	b = putNested(b, 4, func(b []byte) []byte {
		b = putText(b, 1, e.Stdio.Stdin)
		b = putText(b, 2, e.Stdio.Stdout)
		b = putText(b, 3, e.Stdio.Stderr)
		return putBool(b, 4, e.Stdio.Terminal)
	})
	b = putText(b, 5, e.Checkpoint)
	return putUint(b, 6, uint64(e.Pid))
}

// TaskExit says that a process of a container ended; ID is the container's for its
// first process, else the exec's.
type TaskExit struct {
	ContainerID string
	ID          string
	Pid         uint32
	ExitStatus  uint32
	ExitedAt    time.Time
}

// Topic is where subscribers look for it.
func (*TaskExit) Topic() string { return "/tasks/exit" }

// TypeURL names the message in an Any.
func (*TaskExit) TypeURL() string { return "containerd.events.TaskExit" }

// Append writes e behind b.
func (e *TaskExit) Append(b []byte) []byte {
	b = putText(b, 1, e.ContainerID)
	b = putText(b, 2, e.ID)
	b = putUint(b, 3, uint64(e.Pid))
	b = putUint(b, 4, uint64(e.ExitStatus))
	return putTime(b, 5, e.ExitedAt)
}

// TaskDelete says that a container's task is gone.
type TaskDelete struct {
	ContainerID string
	Pid         uint32
	ExitStatus  uint32
	ExitedAt    time.Time
}

// Topic is where subscribers look for it.
func (*TaskDelete) Topic() string { return "/tasks/delete" }

// TypeURL names the message in an Any.
func (*TaskDelete) TypeURL() string { return "containerd.events.TaskDelete" }

// Append writes e behind b.
func (e *TaskDelete) Append(b []byte) []byte {
	b = putText(b, 1, e.ContainerID)
	b = putUint(b, 2, uint64(e.Pid))
	b = putUint(b, 3, uint64(e.ExitStatus))
	return putTime(b, 4, e.ExitedAt)
}

// TaskNote is any event that holds no more than a container's id, an exec's id or
// a checkpoint's path, and a pid: start, oom, exec-added, exec-started, paused,
// resumed, checkpointed.
type TaskNote struct {
	what        string // as the topic ends
	typeName    string
	ContainerID string
	Second      string // exec id, or the path of the checkpoint
	Pid         uint32
	pidField    int
}

// TaskStarted says that a container's first process runs.
func TaskStarted(id string, pid uint32) *TaskNote {
	return &TaskNote{what: "start", typeName: "TaskStart", ContainerID: id, Pid: pid, pidField: 2}
}

// TaskOOM says that the kernel killed a process of a container for want of memory.
func TaskOOM(id string) *TaskNote {
	return &TaskNote{what: "oom", typeName: "TaskOOM", ContainerID: id}
}

// ExecAdded says that an exec is known.
func ExecAdded(id, exec string) *TaskNote {
	return &TaskNote{what: "exec-added", typeName: "TaskExecAdded", ContainerID: id, Second: exec}
}

// ExecStarted says that an exec runs.
func ExecStarted(id, exec string, pid uint32) *TaskNote {
	return &TaskNote{what: "exec-started", typeName: "TaskExecStarted", ContainerID: id, Second: exec, Pid: pid, pidField: 3}
}

// TaskPaused says that a container is frozen.
func TaskPaused(id string) *TaskNote {
	return &TaskNote{what: "paused", typeName: "TaskPaused", ContainerID: id}
}

// TaskResumed says that a container runs again.
func TaskResumed(id string) *TaskNote {
	return &TaskNote{what: "resumed", typeName: "TaskResumed", ContainerID: id}
}

// TaskCheckpointed says that a container's state was written below path.
func TaskCheckpointed(id, path string) *TaskNote {
	return &TaskNote{what: "checkpointed", typeName: "TaskCheckpointed", ContainerID: id, Second: path}
}

// Topic is where subscribers look for it.
func (e *TaskNote) Topic() string { return "/tasks/" + e.what }

// TypeURL names the message in an Any.
func (e *TaskNote) TypeURL() string { return "containerd.events." + e.typeName }

// Append writes e behind b.
func (e *TaskNote) Append(b []byte) []byte {
	b = putText(b, 1, e.ContainerID)
	b = putText(b, 2, e.Second)
	return putUint(b, e.pidField, uint64(e.Pid))
}
