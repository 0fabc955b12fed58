package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/store"
)

// Running completes the id of a container, which must run.
func (p *Pods) Running(ns, id string) (string, error) {
	c, err := p.Container(ns, id)
	if err != nil {
		return "", err
	}
	if c.State != store.ContainerRunning {
		return "", errs.New(errs.FailedPrecondition, "container %s does not run: it is %s", c.ID, c.State)
	}
	return c.ID, nil
}

// Exec runs a command in a container and returns its exit status. a.Process is filled
// in here.
func (p *Pods) Exec(ctx context.Context, ns, id string, cmd []string, a task.Attended) (uint32, error) {
	id, err := p.Running(ns, id)
	if err != nil {
		return 0, err
	}
	if a.Process, err = p.execProcess(ctx, ns, id, cmd, a.Terminal); err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	a.Drain = p.cfg.ExecDrain
	exit, err := p.tasks.Attend(ctx, p.scope(ns), id, a)
	return exit.Status, err
}

// processURL is how containerd's clients mark an OCI process (typeurl, JSON).
const processURL = "types.containerd.io/opencontainers/runtime-spec/1/Process"

// execProcess is the process of the container's spec with another command: the same
// user, environment, limits and confinement.
func (p *Pods) execProcess(ctx context.Context, ns, id string, cmd []string, tty bool) (store.Any, error) {
	if len(cmd) == 0 {
		return store.Any{}, errs.New(errs.InvalidArgument, "no command is given")
	}
	row, err := store.Get(ctx, p.scope(ns), func(tx *store.Tx) (store.Container, error) { return tx.Container(id) })
	if err != nil {
		return store.Any{}, err
	}
	var spec struct {
		Process map[string]json.RawMessage `json:"process"`
	}
	if err := json.Unmarshal(row.Spec.Value, &spec); err != nil || spec.Process == nil {
		return store.Any{}, errs.New(errs.DataLoss, "its OCI spec cannot be read: %v", err)
	}
	process := spec.Process
	if tty {
		var env []string
		if err := json.Unmarshal(orNull(process["env"]), &env); err != nil {
			return store.Any{}, errs.New(errs.DataLoss, "the environment in its OCI spec cannot be read: %v", err)
		}
		if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") }) {
			env = append(env, "TERM=xterm")
		}
		if process["env"], err = json.Marshal(env); err != nil {
			return store.Any{}, err
		}
	}
	if process["args"], err = json.Marshal(cmd); err != nil {
		return store.Any{}, err
	}
	process["terminal"], err = json.Marshal(tty)
	if err != nil {
		return store.Any{}, err
	}
	delete(process, "consoleSize")
	value, err := json.Marshal(process)
	return store.Any{TypeURL: processURL, Value: value}, err
}

func orNull(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("null")
	}
	return raw
}

// maxOutput is how much of both outputs of ExecSync together is kept, in bytes. More
// does not fit into the answer: a kubelet takes 16 MiB.
const maxOutput = 16<<20 - 64<<10

// ExecSync runs a command in a container to its end, at most for the time-out if that
// is not 0: then the error wraps context.DeadlineExceeded, and the command is killed
// with its process group. What it writes beyond maxOutput is dropped.
func (p *Pods) ExecSync(ctx context.Context, ns, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the command ran longer than %s: %w", timeout, context.DeadlineExceeded))
		defer cancel()
	}
	room := &room{left: maxOutput}
	out, errOut := kept{room: room}, kept{room: room}
	status, err := p.Exec(ctx, ns, id, cmd, task.Attended{Stdout: &out, Stderr: &errOut})
	return out.data, errOut.data, int32(status), err
}

// room is what several outputs may fill.
type room struct {
	mu   sync.Mutex
	left int
}

func (r *room) take(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = min(n, r.left)
	r.left -= n
	return n
}

// kept keeps what there is room for and drops the rest: the command never waits.
type kept struct {
	room *room
	data []byte
}

var _ io.Writer = (*kept)(nil)

func (k *kept) Write(p []byte) (int, error) {
	k.data = append(k.data, p[:k.room.take(len(p))]...)
	return len(p), nil
}
