package pod

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/engine/image"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/host/seccomp"
	"github.com/berthd/berth/host/userdb"
	"github.com/berthd/berth/store"
	"github.com/berthd/berth/store/snapshot"
)

func containerName(m *cri.ContainerMetadata) string {
	return m.GetName() + "_" + fmt.Sprint(m.GetAttempt())
}

// Create makes a container in a pod and returns its id. The same name asked for
// again gives the same container, also while it is being made.
//
//	row creating ─> snapshot ─> user, volumes ─> spec ─> plugins ─> rows created
func (p *Pods) Create(ctx context.Context, ns, podID string, config *cri.ContainerConfig) (string, error) {
	m := config.GetMetadata()
	if m.GetName() == "" || strings.ContainsAny(m.GetName(), "/\x00\n") {
		return "", errs.New(errs.InvalidArgument, "container config: metadata.name %q is not valid", m.GetName())
	}
	pod, err := p.Pod(ns, podID)
	if err != nil {
		return "", err
	}
	name := containerName(m)
	what := "container " + name + " of pod " + pod.Name
	return p.do(ctx, "container/"+ns+"/"+pod.ID+"/"+name, what, func(ctx context.Context, mk *making) (string, error) {
		if old := p.containerNamed(ns, pod.ID, name); old != nil {
			if old.State != store.ContainerCreating && old.State != store.ContainerRemoving {
				return old.ID, nil
			}
			// Half made by an earlier daemon, or half removed: it makes room.
			mk.at("removing container " + old.ID + " of the same name, which is " + string(old.State))
			if err := p.removeLocked(ctx, old); err != nil {
				return "", err
			}
		}
		c := &Container{Namespace: ns, ID: id.New(32), Pod: pod.ID, Name: name, Config: proto.CloneOf(config), hidden: true}
		h, err := p.hold(ctx, "container", ns, c.ID, "create")
		if err != nil {
			return "", err
		}
		defer h.release()
		made, err := p.makeContainer(ctx, mk, pod, c)
		if err != nil {
			return "", errors.Join(fmt.Errorf("%s: %w", what, err), p.takeBackContainer(ctx, c))
		}
		p.tellContainer(cri.ContainerEventType_CONTAINER_CREATED_EVENT, made)
		return made.ID, nil
	})
}

func (p *Pods) containerNamed(ns, pod, name string) *Container {
	for _, c := range p.allContainers(ns, pod) {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func (p *Pods) makeContainer(ctx context.Context, mk *making, pod *Pod, c *Container) (*Container, error) {
	if pod.State != store.PodReady {
		return nil, errs.New(errs.FailedPrecondition, "the pod is %s", pod.State)
	}
	h, err := p.handler(pod.Handler)
	if err != nil {
		return nil, err
	}
	mk.at("looking for image " + c.Config.GetImage().GetImage())
	im, err := p.findImage(ctx, c)
	if err != nil {
		return nil, err
	}
	c.Snapshot = h.Snapshotter
	row, err := c.row()
	if err != nil {
		return nil, err
	}
	if row, err = store.Set(ctx, p.scope(c.Namespace), func(tx *store.Tx) (store.PodContainer, error) { return tx.CreatePodContainer(row) }); err != nil {
		return nil, err
	}
	c.State, c.Boot, c.CreatedAt = row.State, row.Boot, row.CreatedAt
	p.showContainer(c)
	failpoint.Here("container.reserved")
	// Whoever ends the pod from here on sees the container, and waits for it.
	if now := p.podOf(c); now.State != store.PodReady {
		return nil, errs.New(errs.FailedPrecondition, "the pod is being stopped")
	}
	mk.at("preparing its root file system")
	mounts, err := p.prepareRoot(ctx, pod, c, im)
	if err != nil {
		return nil, err
	}
	failpoint.Here("container.snapshot")
	mk.at("preparing its mounts")
	sp, err := p.specOf(ctx, pod, c, h, im, mounts)
	if err != nil {
		return nil, err
	}
	sp, done, err := p.adjust(ctx, mk, pod, c, h, sp)
	defer done()
	if err != nil {
		return nil, err
	}
	mk.at("writing its row")
	made, err := p.recordContainer(ctx, pod, c, h, sp)
	if err != nil {
		p.containerGone(ctx, pod, c, sp)
		return nil, err
	}
	p.tellOnly(ctx, made, "created", p.cfg.NRI.PostCreate)
	return made, nil
}

// findImage reads the container's image out of the store, and notes in the
// container what CRI tells of it.
func (p *Pods) findImage(ctx context.Context, c *Container) (image.Entry, error) {
	ask := c.Config.GetImage()
	im, err := p.cfg.Images.Find(ctx, p.scope(c.Namespace), ask.GetImage())
	if err != nil {
		return im, err
	}
	c.ImageName = cmp.Or(ask.GetUserSpecifiedImage(), ask.GetImage())
	c.ImageID, c.ImageRef = im.ID, im.DigestFor(c.ImageName)
	sig, err := podspec.StopSignal(c.Config, im.Info.Spec.Config.StopSignal)
	c.StopSignal = int(sig)
	if err == nil {
		c.LogPath, err = logPath(p.podOf(c).Config.GetLogDirectory(), c.Config.GetLogPath())
	}
	return im, err
}

func (p *Pods) podOf(c *Container) *Pod {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if pod := p.mu.pods[key{c.Namespace, c.Pod}]; pod != nil {
		return pod
	}
	return &Pod{}
}

// logPath joins the log directory of the pod with the container's own part. A
// path that leads out of the directory is refused (CVE-2025-0750).
func logPath(dir, rel string) (string, error) {
	if rel == "" || dir == "" {
		return "", nil
	}
	if !filepath.IsAbs(dir) || strings.ContainsAny(dir+rel, "\x00\n") || !filepath.IsLocal(rel) {
		return "", errs.New(errs.InvalidArgument, "log path %q in %q must lie inside an absolute directory", rel, dir)
	}
	return filepath.Join(dir, rel), nil
}

// prepareRoot makes the container's snapshot.
func (p *Pods) prepareRoot(ctx context.Context, pod *Pod, c *Container, im image.Entry) ([]spec.Mount, error) {
	userns, err := podspec.UserNamespace(pod.Config)
	if err != nil {
		return nil, err
	}
	return p.snapshotOf(ctx, pod, c, im, c.ID, snapshot.Active, userns)
}

// idmap writes a mapping as snapshot labels have it: inside:outside:size.
func idmap(all []specs.LinuxIDMapping) string {
	var parts []string
	for _, m := range all {
		parts = append(parts, fmt.Sprintf("%d:%d:%d", m.ContainerID, m.HostID, m.Size))
	}
	return strings.Join(parts, ",")
}

// specOf makes the container's spec: what needs the root file system is looked up
// in it, mounted for that moment only.
func (p *Pods) specOf(ctx context.Context, pod *Pod, c *Container, h *Handler, im image.Entry, root []spec.Mount) (*specs.Spec, error) {
	in := podspec.Container{ID: c.ID, Config: c.Config, Image: im.Info.Spec.Config, ImageName: c.ImageName}
	ask, err := podspec.UserAsk(c.Config, im.Info.Spec.Config)
	if err != nil {
		return nil, err
	}
	err = mount.Look(ctx, root, func(dir string) (err error) {
		if in.User, err = userdb.Lookup(dir, ask); err != nil {
			return err
		}
		in.Volumes, err = p.makeVolumes(ctx, pod, c, im, dir)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.UID, c.GID, c.Groups = in.User.UID, in.User.GID, in.User.Groups
	if in.Sources, err = p.mountSources(ctx, pod, c); err != nil {
		return nil, err
	}
	if file, err := podspec.SeccompFile(h.Settings, c.Config.GetLinux().GetSecurityContext()); err != nil {
		return nil, err
	} else if file != "" {
		if in.Seccomp, err = seccomp.Read(file); err != nil {
			return nil, err
		}
	}
	if in.TargetPID, err = p.targetPid(ctx, pod, c); err != nil {
		return nil, err
	}
	return podspec.ForContainer(p.cfg.Host, h.Handler, p.specPod(pod), in)
}

// specPod is the pod as specs see it.
func (p *Pods) specPod(pod *Pod) podspec.Pod {
	set := p.cfg.Sandbox.Namespaces(pod.ID)
	dir := p.dir(pod.ID)
	out := podspec.Pod{
		ID: pod.ID, Config: pod.Config, Net: set.Net, IPC: set.IPC, UTS: set.UTS, User: set.User, InfraPID: pod.InfraPid,
		Hosts: filepath.Join(dir, fileHosts), Hostname: filepath.Join(dir, fileHostname), ResolvConf: filepath.Join(dir, fileResolv),
		Shm: filepath.Join(dir, dirShm), Name: pod.Config.GetHostname(),
	}
	if hostIPC(pod.Config) {
		out.Shm = "/dev/shm"
	}
	return out
}

// targetPid is the process whose PID namespace the container joins.
func (p *Pods) targetPid(ctx context.Context, pod *Pod, c *Container) (int, error) {
	o := c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if o.GetPid() != cri.NamespaceMode_TARGET {
		return 0, nil
	}
	t, err := p.Container(c.Namespace, o.GetTargetId())
	if err != nil {
		return 0, err
	}
	if t.Pod != pod.ID {
		return 0, errs.New(errs.InvalidArgument, "target container %s belongs to another pod", t.ID)
	}
	st, err := p.tasks.Get(ctx, p.scope(t.Namespace), t.ID, "")
	if err != nil {
		return 0, fmt.Errorf("target container %s: %w", t.ID, err)
	}
	return int(st.Pid), nil
}

// recordContainer writes the container's metadata and its new state in one
// transaction.
func (p *Pods) recordContainer(ctx context.Context, pod *Pod, c *Container, h *Handler, sp *specs.Spec) (*Container, error) {
	raw, err := json.Marshal(sp)
	if err != nil {
		return nil, err
	}
	ext, err := containerExtension(c)
	if err != nil {
		return nil, err
	}
	made := *c
	made.State, made.hidden = store.ContainerCreated, false
	row, err := made.row()
	if err != nil {
		return nil, err
	}
	err = p.leased(c.Namespace, pod.ID).Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.CreateContainer(store.Container{
			ID: c.ID, Image: c.ImageName, Runtime: h.Runtime, Options: h.Options, Spec: store.Any{TypeURL: specURL, Value: raw},
			Snapshotter: h.Snapshotter, SnapshotKey: c.ID, Sandbox: pod.ID, Labels: labelsOf("container", c.Config.GetLabels()), Extensions: ext,
		}); err != nil {
			return err
		}
		return tx.PutPodContainer(row)
	})
	if err != nil {
		return nil, err
	}
	p.showContainer(&made)
	return &made, nil
}

// specURL is how containerd's clients mark an OCI spec (typeurl, JSON).
const specURL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// takeBackContainer removes a container that could not be made, on its own time.
func (p *Pods) takeBackContainer(ctx context.Context, c *Container) error {
	if c.State == "" {
		return nil // not even its row was written
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := p.removeContainer(ctx, c); err != nil {
		p.log.Error("a container that could not be made is not all gone; it is listed, so that it can be removed", "container", c.ID, "error", err)
		p.unhideContainer(key{c.Namespace, c.ID})
	}
	return nil
}
