// Package sandbox is what holds a pod together: namespaces that are pinned below
// the state directory, and, only where a pod shares its PID namespace or a runtime
// insists on it, a container that runs berth-shim's own `hold`. Nothing is pulled
// for it.
//
// The package owns the pins and the root file system of the built-in container. It
// knows nothing of pods' rows, networks or files.
package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/host/netns"
	"github.com/berthd/berth/store"
)

// Config is what sandboxes are made of.
type Config struct {
	State string // directory of the pins; lost at reboot
	NetNS string // directory of network namespaces; "" is with the other pins
	Root  string // directory of the built-in root file system
	Shim  string // path of berth-shim
	Store *store.Store
	Tasks *task.Tasks
}

// Sandboxes makes and ends what holds pods together.
type Sandboxes struct {
	cfg  Config
	root rootfs
}

// New returns them.
func New(cfg Config) *Sandboxes { return &Sandboxes{cfg: cfg} }

// pins is where a pod's namespaces are pinned; it follows from the id.
func (s *Sandboxes) pins(id string) string { return filepath.Join(s.cfg.State, "netns", id) }

// Namespaces returns the pinned namespaces of a pod, those that it has.
func (s *Sandboxes) Namespaces(id string) netns.Set { return netns.Open(s.pins(id)) }

// Pin makes a pod's namespaces. With a user namespace in o, Hold may be left out.
func (s *Sandboxes) Pin(ctx context.Context, id string, o netns.Options) (netns.Set, error) {
	if !o.Net && !o.IPC && !o.UTS && o.User == nil {
		return netns.Set{}, nil
	}
	if o.User != nil && len(o.User.Hold) == 0 {
		o.User.Hold = []string{s.cfg.Shim, "hold-input"}
	}
	if s.cfg.NetNS != "" {
		o.NetAt = s.netAt(id)
	}
	return netns.Make(ctx, s.pins(id), o)
}

func (s *Sandboxes) netAt(id string) string { return filepath.Join(s.cfg.NetNS, "berth-"+id) }

// NetNS is where the network namespace of a pod is or was pinned, also of one that
// nothing else is known of any more.
func (s *Sandboxes) NetNS(id string) string {
	if at := s.Namespaces(id).Net; at != "" || s.cfg.NetNS == "" {
		return at
	}
	return s.netAt(id)
}

// Unpin lets a pod's namespaces go. It may be called again.
func (s *Sandboxes) Unpin(ctx context.Context, id string) error {
	return netns.Remove(ctx, s.pins(id))
}

// Infra is the container that holds a pod together from inside.
type Infra struct {
	ID      string // the pod's
	Runtime string
	Options store.Any
	Spec    *specs.Spec
	Labels  map[string]string
	Extra   map[string]store.Any // extensions of its row
}

// Args is the command line of the built-in container.
var Args = []string{"/" + holdName, "hold"}

// Start runs a pod's built-in container, and returns its pid. What is left of a
// start that fails, End takes away.
func (s *Sandboxes) Start(ctx context.Context, v store.Scoped, in Infra) (uint32, error) {
	root, err := s.root.make(s.cfg.Root, s.cfg.Shim)
	if err != nil {
		return 0, fmt.Errorf("root file system of the infrastructure process: %w", err)
	}
	raw, err := json.Marshal(in.Spec)
	if err != nil {
		return 0, err
	}
	err = v.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.CreateContainer(store.Container{
			ID: in.ID, Runtime: in.Runtime, Options: in.Options, Spec: store.Any{TypeURL: specURL, Value: raw}, Sandbox: in.ID, Labels: in.Labels, Extensions: in.Extra,
		})
		return err
	})
	if err != nil {
		return 0, err
	}
	failpoint.Here("sandbox.infra.row")
	req := task.CreateRequest{ID: in.ID, Rootfs: []spec.Mount{{Type: "bind", Source: root, Options: []string{"rbind", "ro"}}}, Options: in.Options}
	if _, err := s.cfg.Tasks.Create(ctx, v, req); err != nil {
		return 0, fmt.Errorf("infrastructure process: %w", err)
	}
	failpoint.Here("sandbox.infra.task")
	pid, err := s.cfg.Tasks.Start(ctx, v, in.ID, "")
	if err != nil {
		return 0, fmt.Errorf("infrastructure process: %w", err)
	}
	return pid, nil
}

// specURL is how containerd's clients mark an OCI spec (typeurl, JSON).
const specURL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// endTime bounds the wait for the built-in container, which is killed.
const endTime = 30 * time.Second

// End ends a pod's built-in container, if there is one. It may be called again.
func (s *Sandboxes) End(ctx context.Context, v store.Scoped, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	err := s.cfg.Tasks.EndByForce(ctx, v, id)
	if err != nil {
		return fmt.Errorf("end the infrastructure process of pod %s: %w", id, err)
	}
	return v.Update(ctx, func(tx *store.Tx) error {
		return errs.Ignore(tx.DeleteContainer(id), errs.NotFound)
	})
}

// Alive reports whether a pod's built-in container runs.
func (s *Sandboxes) Alive(ctx context.Context, v store.Scoped, id string) (bool, error) {
	st, err := s.cfg.Tasks.Get(ctx, v, id, "")
	if errs.Is(err, errs.NotFound) {
		return false, nil
	}
	return err == nil && st.Status != task.Stopped, err
}
