// Package pod does with pods and their containers what Kubernetes means by them:
// run, stop, remove, recover. A pod is pinned namespaces, an attachment to
// networks, a few files and a row; only one that shares a PID namespace, or whose
// runtime insists on it, has a process of its own, and that one is built in.
//
// The package owns the rows of pods and their containers, the directory of their
// files, and one goroutine that follows the events of tasks. What it shows, it
// shows from memory; memory changes only after the row has.
package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/keylock"
	"github.com/berthd/berth/engine/event"
	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/engine/image"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/engine/sandbox"
	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/host/cni"
	"github.com/berthd/berth/host/nri"
	"github.com/berthd/berth/store"
)

// Handler is a runtime handler: how the containers of pods that ask for it run.
type Handler struct {
	podspec.Handler
	Runtime     string    // shim: type or absolute path
	Options     store.Any // of the runtime
	Snapshotter string
	Networks    *cni.Networks // its own, or nil for everybody's
	// Learn asks the runtime what it can do, once, when somebody needs to know; nil
	// if that is known.
	Learn  func(context.Context) (idmap, recursiveReadOnly bool)
	Broken error // why it cannot be used, if it cannot

	learnt sync.Once
}

func (h *Handler) learn(ctx context.Context) {
	h.learnt.Do(func() {
		if h.Learn != nil {
			h.IDMap, h.RecursiveReadOnly = h.Learn(ctx)
		}
	})
}

// Config is what pods are made of.
type Config struct {
	Root        string // directory of what containers' mounts keep
	State       string // directory of pods' files; lost at reboot
	GC          *gc.Collector
	Store       *store.Store
	Tasks       *task.Tasks
	Sandbox     *sandbox.Sandboxes
	Images      *image.Images
	Exchange    *event.Exchange
	Networks    *cni.Networks
	CNIDir      string // of network configurations
	CNITemplate string // of one that is made when the node gets its pods' addresses; ""
	Owner       cni.Owner
	Host        podspec.Host
	NRI         *nri.Plugins        // or nil
	Handlers    map[string]*Handler // "" is the default
	MaxLine     int                 // bytes of one log line before it is split; 0: not split
	ExecDrain   time.Duration       // task.Attended.Drain of every exec

	NoCheckpoints bool // checkpoints are refused
	Prefer        cni.IPPreference
	Warnings      []string // that show in the node\'s status
	// IgnoreVolumes makes no directories for the volumes that images define.
	IgnoreVolumes bool
	Log           *slog.Logger
}

// Pods knows every pod of the daemon.
type Pods struct {
	cfg    Config
	store  *store.Store
	tasks  *task.Tasks
	log    *slog.Logger
	locks  keylock.Map // one change of a pod or container at a time
	stages stages      // what is done by those who hold them
	named  atomic.Pointer[map[string]*Handler]
	stops  keylock.Map // held by who sent a container its stop signal
	ooms   marks       // containers that met their memory limit
	makes  makings     // pods and containers that are being made
	feed   *feed       // of events, for CRI
	rates  rates       // of processor use
	sizes  sizes       // of containers\' layers

	mu struct {
		sync.RWMutex
		pods       map[key]*Pod
		containers map[key]*Container
		asides     []store.Aside
	}
	life context.Context // of work that goes on when its caller has left
	stop context.CancelFunc
	wg   sync.WaitGroup
}

type key struct{ ns, id string }

// New returns the pods, none of them known yet: see Recover.
func New(ctx context.Context, cfg Config) *Pods {
	p := &Pods{cfg: cfg, store: cfg.Store, tasks: cfg.Tasks, log: cfg.Log, feed: newFeed()}
	p.mu.pods, p.mu.containers = map[key]*Pod{}, map[key]*Container{}
	p.life, p.stop = context.WithCancel(ctx)
	p.named.Store(&cfg.Handlers)
	return p
}

// handlers are the runtimes by name, "" being the default. The map is never changed.
func (p *Pods) handlers() map[string]*Handler { return *p.named.Load() }

// SetHandlers replaces the runtimes: those of the pods that there are have to be among
// them. all must not be changed any more.
func (p *Pods) SetHandlers(all map[string]*Handler) { p.named.Store(&all) }

// Handlers are the runtimes by name. The map is not to be changed.
func (p *Pods) Handlers() map[string]*Handler { return p.handlers() }

// Close waits for the work in progress; pods run on.
func (p *Pods) Close() error {
	p.stop()
	p.wg.Wait()
	return nil
}

// Pod is a pod at one moment. It is never changed: a change makes a new one.
type Pod struct {
	Namespace string // of berth, not of Kubernetes
	ID        string
	Name      string // name, namespace, uid and attempt in one
	Handler   string
	State     store.PodState
	Boot      string
	CreatedAt time.Time
	Config    *cri.PodSandboxConfig
	hidden    bool // it never was ready: CRI does not see it while it is made or taken back
	podBody
}

// podBody is what a pod's row keeps beside its config.
type podBody struct {
	Plan     []byte   `json:"plan,omitempty"` // cni.Saved: before its ADD a plan, then what was done
	IPs      []string `json:"ips,omitempty"`
	Infra    bool     `json:"infra,omitempty"` // it has a process of its own, a task with the pod's id
	InfraPid int      `json:"infraPid,omitempty"`
	Stopped  bool     `json:"stopped,omitempty"` // its network is down
}

// Container is a pod's container at one moment; never changed.
type Container struct {
	Namespace string
	ID        string
	Pod       string
	Name      string // name and attempt in one
	State     store.ContainerState
	Boot      string
	CreatedAt time.Time
	Config    *cri.ContainerConfig
	hidden    bool // as a pod's
	containerBody
}

// containerBody is what a container's row keeps beside its config.
type containerBody struct {
	ImageName  string            `json:"imageName"` // as the user wrote it
	ImageRef   string            `json:"imageRef"`  // repo digest, or the id
	ImageID    string            `json:"imageID"`   // digest of the config
	LogPath    string            `json:"logPath,omitempty"`
	StopSignal int               `json:"stopSignal"`
	UID        uint32            `json:"uid"`
	GID        uint32            `json:"gid"`
	Groups     []uint32          `json:"groups,omitempty"`
	Snapshot   string            `json:"snapshot"`         // its snapshotter
	Images     map[string]string `json:"images,omitempty"` // mounted ones: path in the container to id
	Pid        uint32            `json:"pid,omitempty"`
	StartedAt  time.Time         `json:"startedAt,omitzero"`
	FinishedAt time.Time         `json:"finishedAt,omitzero"`
	ExitCode   int32             `json:"exitCode,omitempty"`
	Reason     string            `json:"reason,omitempty"`
	Message    string            `json:"message,omitempty"`
	OOM        bool              `json:"oom,omitempty"`
}

func (p *Pods) scope(ns string) store.Scoped { return p.store.In(store.Scope{Namespace: ns}) }

// leased is the scope of what belongs to a pod: its lease holds it.
func (p *Pods) leased(ns, pod string) store.Scoped {
	return p.store.In(store.Scope{Namespace: ns, Lease: pod})
}

// dir is where a pod's files are; the name follows from the id.
func (p *Pods) dir(id string) string { return filepath.Join(p.cfg.State, "pods", id) }

func (p *Pods) networks(h *Handler) *cni.Networks {
	if h.Networks != nil {
		return h.Networks
	}
	return p.cfg.Networks
}

func (p *Pods) handler(name string) (*Handler, error) {
	if h := p.handlers()[name]; h != nil && h.Broken != nil {
		return nil, errs.New(errs.FailedPrecondition, "runtime handler %q cannot be used: %w", name, h.Broken)
	} else if h != nil {
		h.learn(p.life)
		return h, nil
	}
	var have []string
	for n := range p.handlers() {
		if n != "" {
			have = append(have, n)
		}
	}
	return nil, errs.New(errs.NotFound, "runtime handler %q is not configured; there are %v", name, have)
}

// row gives a pod the form of its row.
func (pod *Pod) row() (store.Pod, error) {
	config, err := proto.Marshal(pod.Config)
	if err != nil {
		return store.Pod{}, err
	}
	body, err := json.Marshal(pod.podBody)
	return store.Pod{
		Namespace: pod.Namespace, ID: pod.ID, Name: pod.Name, State: pod.State, Boot: pod.Boot, Handler: pod.Handler, CreatedAt: pod.CreatedAt,
		Config: config, Body: body,
	}, err
}

func podOf(r store.Pod) (*Pod, error) {
	pod := &Pod{Namespace: r.Namespace, ID: r.ID, Name: r.Name, Handler: r.Handler, State: r.State, Boot: r.Boot, CreatedAt: r.CreatedAt, Config: &cri.PodSandboxConfig{}}
	if err := proto.Unmarshal(r.Config, pod.Config); err != nil {
		return pod, errs.New(errs.DataLoss, "config of pod %s: %v", r.ID, err)
	}
	if err := json.Unmarshal(r.Body, &pod.podBody); err != nil {
		return pod, errs.New(errs.DataLoss, "row of pod %s: %v", r.ID, err)
	}
	return pod, nil
}

func (c *Container) row() (store.PodContainer, error) {
	config, err := proto.Marshal(c.Config)
	if err != nil {
		return store.PodContainer{}, err
	}
	body, err := json.Marshal(c.containerBody)
	return store.PodContainer{
		Namespace: c.Namespace, ID: c.ID, Pod: c.Pod, Name: c.Name, State: c.State, Boot: c.Boot, CreatedAt: c.CreatedAt, Config: config, Body: body,
	}, err
}

func containerOf(r store.PodContainer) (*Container, error) {
	c := &Container{Namespace: r.Namespace, ID: r.ID, Pod: r.Pod, Name: r.Name, State: r.State, Boot: r.Boot, CreatedAt: r.CreatedAt, Config: &cri.ContainerConfig{}}
	if err := proto.Unmarshal(r.Config, c.Config); err != nil {
		return c, errs.New(errs.DataLoss, "config of container %s: %v", r.ID, err)
	}
	if err := json.Unmarshal(r.Body, &c.containerBody); err != nil {
		return c, errs.New(errs.DataLoss, "row of container %s: %v", r.ID, err)
	}
	return c, nil
}

// putPod writes a changed pod to its row and then shows it.
func (p *Pods) putPod(ctx context.Context, pod Pod) (*Pod, error) {
	row, err := pod.row()
	if err != nil {
		return nil, err
	}
	if err := p.scope(pod.Namespace).Update(ctx, func(tx *store.Tx) error { return tx.PutPod(row) }); err != nil {
		return nil, fmt.Errorf("pod %s: %w", pod.ID, err)
	}
	p.showPod(&pod)
	return &pod, nil
}

func (p *Pods) showPod(pod *Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.pods[key{pod.Namespace, pod.ID}] = pod
}

// putContainer writes a changed container to its row and then shows it.
func (p *Pods) putContainer(ctx context.Context, c Container) (*Container, error) {
	row, err := c.row()
	if err != nil {
		return nil, err
	}
	if err := p.scope(c.Namespace).Update(ctx, func(tx *store.Tx) error { return tx.PutPodContainer(row) }); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.ID, err)
	}
	p.showContainer(&c)
	return &c, nil
}

func (p *Pods) showContainer(c *Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.containers[key{c.Namespace, c.ID}] = c
}
