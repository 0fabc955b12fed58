package wire

import (
	"time"

	"github.com/berthd/berth/base/spec"
)

// The messages of containerd.task.v2 and containerd.task.v3 (they are the same).

// Any is google.protobuf.Any.
type Any struct {
	TypeURL string
	Value   []byte
}

// Append writes a behind b.
func (a *Any) Append(b []byte) []byte { return putBytes(putText(b, 1, a.TypeURL), 2, a.Value) }

// Decode reads a from b; the value points into b.
func (a *Any) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&a.TypeURL)
		case 2:
			return f.bytes(&a.Value)
		}
		return nil
	})
}

// putAny writes nothing for an Any without a type.
func putAny(b []byte, num int, a Any) []byte {
	if a.TypeURL == "" && len(a.Value) == 0 {
		return b
	}
	return putNested(b, num, a.Append)
}

// Empty is google.protobuf.Empty.
type Empty struct{}

// Append writes nothing.
func (Empty) Append(b []byte) []byte { return b }

// Text is google.protobuf.StringValue.
type Text string

// Append writes t behind b.
func (t Text) Append(b []byte) []byte { return putText(b, 1, string(t)) }

// Count is google.protobuf.UInt64Value.
type Count uint64

// Append writes c behind b.
func (c Count) Append(b []byte) []byte { return putUint(b, 1, uint64(c)) }

func putMounts(b []byte, num int, list []spec.Mount) []byte {
	for _, m := range list {
		b = putNested(b, num, func(b []byte) []byte {
			b = putText(b, 1, m.Type)
			b = putText(b, 2, m.Source)
			b = putText(b, 3, m.Target)
			return putTexts(b, 4, m.Options)
		})
	}
	return b
}

func (f field) mount(dst *[]spec.Mount) error {
	if f.kind != kindBytes {
		return nil
	}
	var m spec.Mount
	err := fields(f.data, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&m.Type)
		case 2:
			return f.text(&m.Source)
		case 3:
			return f.text(&m.Target)
		case 4:
			return f.texts(&m.Options)
		}
		return nil
	})
	*dst = append(*dst, m)
	return err
}

// Stdio says where the streams of a process go: paths or URIs; "" is /dev/null.
type Stdio struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

// CreateTask is CreateTaskRequest.
type CreateTask struct {
	ID               string
	Bundle           string
	Rootfs           []spec.Mount
	Stdio            Stdio
	Checkpoint       string
	ParentCheckpoint string
	Options          Any
}

// Decode reads r from b.
func (r *CreateTask) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&r.ID)
		case 2:
			return f.text(&r.Bundle)
		case 3:
			return f.mount(&r.Rootfs)
		case 4:
			return f.bool(&r.Stdio.Terminal)
		case 5:
			return f.text(&r.Stdio.Stdin)
		case 6:
			return f.text(&r.Stdio.Stdout)
		case 7:
			return f.text(&r.Stdio.Stderr)
		case 8:
			return f.text(&r.Checkpoint)
		case 9:
			return f.text(&r.ParentCheckpoint)
		case 10:
			return f.message(&r.Options)
		}
		return nil
	})
}

// Process names a container, or one exec of it: StartRequest, StateRequest,
// DeleteRequest, WaitRequest, and the requests that name only the container.
type Process struct {
	ID     string
	ExecID string // "" is the container's first process
}

// Decode reads r from b.
func (r *Process) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&r.ID)
		case 2:
			return f.text(&r.ExecID)
		}
		return nil
	})
}

// Exec is ExecProcessRequest.
type Exec struct {
	Process
	Stdio Stdio
	Spec  Any // an OCI process as JSON
}

// Decode reads r from b.
func (r *Exec) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&r.ID)
		case 2:
			return f.text(&r.ExecID)
		case 3:
			return f.bool(&r.Stdio.Terminal)
		case 4:
			return f.text(&r.Stdio.Stdin)
		case 5:
			return f.text(&r.Stdio.Stdout)
		case 6:
			return f.text(&r.Stdio.Stderr)
		case 7:
			return f.message(&r.Spec)
		}
		return nil
	})
}

// ResizePty is ResizePtyRequest.
type ResizePty struct {
	Process
	Width, Height uint32 // characters
}

// Decode reads r from b.
func (r *ResizePty) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&r.ID)
		case 2:
			return f.text(&r.ExecID)
		case 3:
			return f.uint32(&r.Width)
		case 4:
			return f.uint32(&r.Height)
		}
		return nil
	})
}

// Kill is KillRequest.
type Kill struct {
	Process
	Signal uint32
	All    bool
}

// Decode reads r from b.
func (r *Kill) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&r.ID)
		case 2:
			return f.text(&r.ExecID)
		case 3:
			return f.uint32(&r.Signal)
		case 4:
			return f.bool(&r.All)
		}
		return nil
	})
}

// CloseIO is CloseIORequest.
type CloseIO struct {
	Process
	Stdin bool
}

// Decode reads r from b.
func (r *CloseIO) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&r.ID)
		case 2:
			return f.text(&r.ExecID)
		case 3:
			return f.bool(&r.Stdin)
		}
		return nil
	})
}

// Checkpoint is CheckpointTaskRequest.
type Checkpoint struct {
	ID      string
	Path    string
	Options Any
}

// Decode reads r from b.
func (r *Checkpoint) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&r.ID)
		case 2:
			return f.text(&r.Path)
		case 3:
			return f.message(&r.Options)
		}
		return nil
	})
}

// Update is UpdateTaskRequest.
type Update struct {
	ID          string
	Resources   Any // LinuxResources as JSON
	Annotations map[string]string
}

// Decode reads r from b.
func (r *Update) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&r.ID)
		case 2:
			return f.message(&r.Resources)
		case 3:
			return f.pair(&r.Annotations)
		}
		return nil
	})
}

// Shutdown is ShutdownRequest.
type Shutdown struct {
	ID  string
	Now bool
}

// Decode reads r from b.
func (r *Shutdown) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&r.ID)
		case 2:
			return f.bool(&r.Now)
		}
		return nil
	})
}

// Pid is CreateTaskResponse and StartResponse.
type Pid uint32

// Append writes p behind b.
func (p Pid) Append(b []byte) []byte { return putUint(b, 1, uint64(p)) }

// Status of a process, with the numbers of containerd.v1.types.Status.
type TaskStatus uint8

// The states a process can be in.
const (
	Unknown TaskStatus = iota
	Created
	Running
	Stopped
	Paused
	Pausing
)

// State is StateResponse.
type State struct {
	ID         string
	Bundle     string
	Pid        uint32
	Status     TaskStatus
	Stdio      Stdio
	ExitStatus uint32
	ExitedAt   time.Time
	ExecID     string
}

// Append writes s behind b.
func (s *State) Append(b []byte) []byte {
	b = putText(b, 1, s.ID)
	b = putText(b, 2, s.Bundle)
	b = putUint(b, 3, uint64(s.Pid))
	b = putUint(b, 4, uint64(s.Status))
	b = putText(b, 5, s.Stdio.Stdin)
	b = putText(b, 6, s.Stdio.Stdout)
	b = putText(b, 7, s.Stdio.Stderr)
	b = putBool(b, 8, s.Stdio.Terminal)
	b = putUint(b, 9, uint64(s.ExitStatus))
	b = putTime(b, 10, s.ExitedAt)
	return putText(b, 11, s.ExecID)
}

// Deleted is DeleteResponse.
type Deleted struct {
	Pid        uint32
	ExitStatus uint32
	ExitedAt   time.Time
}

// Append writes d behind b.
func (d *Deleted) Append(b []byte) []byte {
	return putTime(putUint(putUint(b, 1, uint64(d.Pid)), 2, uint64(d.ExitStatus)), 3, d.ExitedAt)
}

// Waited is WaitResponse.
type Waited struct {
	ExitStatus uint32
	ExitedAt   time.Time
}

// Append writes w behind b.
func (w *Waited) Append(b []byte) []byte {
	return putTime(putUint(b, 1, uint64(w.ExitStatus)), 2, w.ExitedAt)
}

// Pids is PidsResponse: each process, with the exec it was started by, if it was.
type Pids []PidInfo

// PidInfo is ProcessInfo; its info is a containerd.runc.v1.ProcessDetails.
type PidInfo struct {
	Pid    uint32
	ExecID string
}

// Append writes p behind b.
func (p Pids) Append(b []byte) []byte {
	for _, i := range p {
		b = putNested(b, 1, func(b []byte) []byte {
			b = putUint(b, 1, uint64(i.Pid))
			if i.ExecID == "" {
				return b
			}
			return putAny(b, 2, Any{"containerd.runc.v1.ProcessDetails", putText(nil, 1, i.ExecID)})
		})
	}
	return b
}

// Stats is StatsResponse.
type Stats struct{ Stats Any }

// Append writes s behind b.
func (s *Stats) Append(b []byte) []byte { return putAny(b, 1, s.Stats) }

// Connected is ConnectResponse.
type Connected struct {
	ShimPid uint32
	TaskPid uint32
	Version string
}

// Append writes c behind b.
func (c *Connected) Append(b []byte) []byte {
	return putText(putUint(putUint(b, 1, uint64(c.ShimPid)), 2, uint64(c.TaskPid)), 3, c.Version)
}
