package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/store"
)

// LabelManaged on an image says that it belongs to a kubelet (protocols.md 3.4).
const LabelManaged = "io.cri-containerd.image"

// NodePull asks for an image as a kubelet does.
type NodePull struct {
	Ref         string // a name, in Docker's short form too
	Snapshotter string // "": the default
	Credential  Credential
	Server      string        // host that the credential is for; "" is the image's
	Idle        time.Duration // the pull is given up when no byte comes for so long; 0: never
	Pinned      []string      // names that are kept from a kubelet's garbage collection
}

// PullForNode pulls an image and keeps it under three names: that of the tag, that
// of the digest, and the digest of its config, by which a kubelet knows it.
func (i *Images) PullForNode(ctx context.Context, v store.Scoped, r NodePull) (Entry, error) {
	ref, err := imageref.Normalize(r.Ref)
	if err != nil {
		return Entry{}, err
	}
	labels := map[string]string{LabelManaged: "managed"}
	if pinned(ref, r.Pinned) {
		labels[LabelPinned] = "pinned"
	}
	req := PullRequest{
		Ref: ref, Labels: labels, Choice: HostChoice(), Unpack: []Target{{Snapshotter: r.Snapshotter}}, ByConfig: true,
		More: []NameRule{{Name: ref.Name(), AddDigest: true}}, Client: r.Credential.Username + "@" + r.Server,
	}
	if !r.Credential.Empty() {
		req.Registry.Credentials = func(_ context.Context, host string) (Credential, error) {
			if r.Server != "" && !sameRegistry(r.Server, host) {
				return Credential{}, nil
			}
			return r.Credential, nil
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if r.Idle > 0 {
		dog := newWatchdog(r.Idle, func() {
			cancel(errs.New(errs.Unavailable, "no byte of the image came for %s (image_pull_progress_timeout)", r.Idle))
		})
		defer dog.stop()
		req.Watch = dog.saw
	}
	im, err := i.Pull(ctx, v, req)
	if err != nil {
		return Entry{}, err
	}
	info, err := i.info(ctx, v, im)
	if err != nil {
		return Entry{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	return Entry{ID: info.Config.Digest.String(), Names: []string{im.Name}, Info: info, Pinned: im.Labels[LabelPinned] == "pinned"}, nil
}

func pinned(ref imageref.Reference, list []string) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		p, err := imageref.Normalize(s)
		return err == nil && p.String() == ref.String()
	})
}

// watchdog calls bite when progress stands still for a time.
type watchdog struct {
	idle  time.Duration
	timer *time.Timer
	mu    sync.Mutex
	bytes map[string]int64
}

func newWatchdog(idle time.Duration, bite func()) *watchdog {
	return &watchdog{idle: idle, timer: time.AfterFunc(idle, bite), bytes: map[string]int64{}}
}

func (w *watchdog) stop() { w.timer.Stop() }

// saw is told of progress; only what has changed counts.
func (w *watchdog) saw(p Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := p.Name + "\x00" + p.Event
	if old, ok := w.bytes[k]; ok && old == p.Progress {
		return
	}
	w.bytes[k] = p.Progress
	w.timer.Reset(w.idle)
}

// sameRegistry compares a server address of a CRI credential, a URL or a host, with
// a host; Docker's registry has several names.
func sameRegistry(server, host string) bool {
	return registryHost(server) == registryHost(host)
}

func registryHost(s string) string {
	_, rest, ok := strings.Cut(s, "://")
	if !ok {
		rest = s
	}
	host, _, _ := strings.Cut(rest, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// RemoveForNode takes away an image by any of its names or its id, with all its
// names. One that is not there is no error; one that others remove at the same time
// neither.
func (i *Images) RemoveForNode(ctx context.Context, v store.Scoped, ref string) error {
	e, err := i.Find(ctx, v, ref)
	if err != nil {
		return errs.Ignore(err, errs.NotFound)
	}
	return i.Remove(ctx, v, e)
}

// Lookup is Find for those to whom an image that is not there is an answer.
func (i *Images) Lookup(ctx context.Context, v store.Scoped, ref string) (e Entry, ok bool, err error) {
	e, err = i.Find(ctx, v, ref)
	if errs.Is(err, errs.NotFound) {
		return Entry{}, false, nil
	}
	return e, err == nil, err
}

// Usage is what images and containers take on one file system.
type Usage struct {
	Root          string // the snapshot driver's directory
	Bytes, Inodes int64
}

// Usages measures what a snapshotter's layers and the blobs take on the disk.
// Committed layers were measured when they were made; only those that containers
// write to are walked.
func (i *Images) Usages(ctx context.Context, v store.Scoped) ([]Usage, error) {
	d, err := i.store.Driver(i.cfg.Snapshotter)
	if err != nil {
		return nil, err
	}
	u := Usage{Root: d.Root()}
	var all []store.Snapshot
	var blobs []store.Content
	err = v.View(ctx, func(tx *store.Tx) (err error) {
		if all, err = tx.Snapshots(i.cfg.Snapshotter); err == nil {
			blobs, err = tx.Contents()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, b := range blobs {
		u.Bytes += b.Size
		u.Inodes++
	}
	var errsAll []error
	for _, s := range all {
		if s.Size == 0 && s.Inodes == 0 {
			m, err := v.SnapshotUsage(ctx, i.cfg.Snapshotter, s.Name)
			if err != nil {
				errsAll = append(errsAll, errs.Ignore(err, errs.NotFound))
				continue
			}
			s.Size, s.Inodes = m.Size, m.Inodes
		}
		u.Bytes += s.Size
		u.Inodes += s.Inodes
	}
	return []Usage{u}, errors.Join(errsAll...)
}
