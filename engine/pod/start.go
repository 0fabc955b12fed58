package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/engine/task"
	"github.com/berthd/berth/store"
)

// Why a container is over, in CRI's words.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOM        = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "Unknown"
)

const (
	codeStartError = 128
	codeUnknown    = 255
)

// change runs fn on a container while nobody else changes it.
func (p *Pods) change(ctx context.Context, ns, id, what string, fn func(*Container) error) error {
	c, err := p.Container(ns, id)
	if err != nil {
		return err
	}
	h, err := p.hold(ctx, "container", ns, c.ID, what)
	if err != nil {
		return err
	}
	defer h.release()
	if c, err = p.Container(ns, c.ID); err != nil {
		return err
	}
	if err := fn(c); err != nil {
		return fmt.Errorf("%s container %s: %w", what, c.ID, err)
	}
	return nil
}

// Start runs a created container.
func (p *Pods) Start(ctx context.Context, ns, id string) error {
	return p.change(ctx, ns, id, "start", func(c *Container) error {
		if c.State != store.ContainerCreated {
			return errs.New(errs.FailedPrecondition, "it is %s", c.State)
		}
		pod := p.podOf(c)
		if pod.State != store.PodReady {
			return errs.New(errs.FailedPrecondition, "its pod is %s", pod.State)
		}
		h, err := p.handler(pod.Handler)
		if err != nil {
			return err
		}
		next := *c
		next.StartedAt = time.Now().UTC() // before, so that no end is earlier
		pid, err := p.launch(ctx, pod, c, h)
		if err != nil {
			return errors.Join(err, p.startFailed(ctx, next, err))
		}
		failpoint.Here("container.started")
		next.State, next.Pid = store.ContainerRunning, pid
		row, err := next.row()
		if err != nil {
			return err
		}
		// An exit may come in at any time from here on, and waits for this lock.
		if err := p.scope(ns).Promise(context.WithoutCancel(ctx), func(tx *store.Tx) error { return tx.PutPodContainer(row) }); err != nil {
			return err
		}
		p.showContainer(&next)
		p.tellContainer(cri.ContainerEventType_CONTAINER_STARTED_EVENT, &next)
		p.tellOnly(ctx, &next, "started", p.cfg.NRI.PostStart)
		return nil
	})
}

// launch makes the container's task and runs it.
func (p *Pods) launch(ctx context.Context, pod *Pod, c *Container, h *Handler) (uint32, error) {
	if err := p.notice(ctx, c, "start", p.cfg.NRI.StartContainer); err != nil {
		return 0, err
	}
	v := p.leased(c.Namespace, pod.ID)
	rootfs, err := v.SnapshotMounts(ctx, c.Snapshot, c.ID)
	if err != nil {
		return 0, err
	}
	if c.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(c.LogPath), 0o755); err != nil {
			return 0, fmt.Errorf("log directory: %w", err)
		}
	}
	req := task.CreateRequest{Run: true, ID: c.ID, Rootfs: rootfs, Terminal: c.Config.GetTty(), Options: h.Options, Stdout: p.logURI(c), RuntimePath: ""}
	if !c.Config.GetTty() {
		req.Stderr = req.Stdout
	}
	if c.Config.GetStdin() {
		req.Stdin = "attach:"
		if c.Config.GetStdinOnce() {
			req.Stdin = "attach:?once=1"
		}
	}
	return p.tasks.Create(ctx, v, req)
}

// logURI tells the shim where the container's output goes: it writes the file
// itself, so the daemon is not needed for it. Without a path output goes only to
// who is attached.
func (p *Pods) logURI(c *Container) string {
	if c.LogPath == "" {
		return "log:"
	}
	// A line that is not to be split is, at what a shim holds at most.
	q := url.Values{"max-line": {strconv.Itoa(cmp.Or(max(0, p.cfg.MaxLine), 1<<20))}}
	u := url.URL{Scheme: "log", Path: c.LogPath, RawQuery: q.Encode()}
	return u.String()
}

// startFailed writes down a container that never ran.
func (p *Pods) startFailed(ctx context.Context, c Container, cause error) error {
	c.State, c.ExitCode, c.Reason, c.Message, c.FinishedAt = store.ContainerExited, codeStartError, reasonStartError, cause.Error(), time.Now().UTC()
	next, err := p.putContainer(context.WithoutCancel(ctx), c)
	if err == nil {
		p.tellContainer(cri.ContainerEventType_CONTAINER_STOPPED_EVENT, next)
		p.tellOnly(context.WithoutCancel(ctx), next, "stopped", p.cfg.NRI.StopContainer)
	}
	return err
}

// endTask kills and deletes a container's task; one that is not there is no error.
func (p *Pods) endTask(ctx context.Context, c *Container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if p.lastIn(c) {
		return p.tasks.EndByForce(ctx, p.scope(c.Namespace), c.ID)
	}
	return p.tasks.End(ctx, p.scope(c.Namespace), c.ID)
}
