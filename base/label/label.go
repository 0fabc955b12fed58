// Package label holds the label keys that berth obeys and the rule that every
// label must keep. The keys are containerd's: other programs write them.
package label

import (
	"fmt"
	"strings"

	"github.com/berthd/berth/base/errs"
)

// MaxBytes is the longest key and value together.
const MaxBytes = 4096

// Keys read by garbage collection (docs/design/gc.md).
const (
	GCRoot        = "containerd.io/gc.root"
	GCExpire      = "containerd.io/gc.expire"
	GCFlat        = "containerd.io/gc.flat"
	GCRef         = "containerd.io/gc.ref."
	GCRefContent  = "containerd.io/gc.ref.content"
	GCRefSnapshot = "containerd.io/gc.ref.snapshot."
	GCRefImage    = "containerd.io/gc.ref.image"
	GCBref        = "containerd.io/gc.bref."

	GCCondSnapshot = "containerd.io/gc.cond.snapshot."
	GCCondUsedAt   = "containerd.io/gc.cond.value-usedat"
)

// Keys of content and snapshots.
const (
	Uncompressed      = "containerd.io/uncompressed"
	DistSource        = "containerd.io/distribution.source." // see Source
	SnapshotPrefix    = "containerd.io/snapshot/"
	SnapshotRef       = "containerd.io/snapshot.ref"
	SnapshotUIDMap    = "containerd.io/snapshot/uidmapping"
	SnapshotGIDMap    = "containerd.io/snapshot/gidmapping"
	DefaultRuntime    = "containerd.io/defaults/runtime"
	DefaultSnapshot   = "containerd.io/defaults/snapshotter"
	ImageLabelPrefix  = "containerd.io/"
	SnapshotMaxSize   = "containerd.io/snapshot/max-size"
	SnapshotUpperPath = "containerd.io/snapshot/overlay.upperdir"
)

// Keys of the restart monitor.
const (
	RestartStatus  = "containerd.io/restart.status"             // running or stopped: what is wanted
	RestartPolicy  = "containerd.io/restart.policy"             // no, always, unless-stopped, on-failure[:N]
	RestartCount   = "containerd.io/restart.count"              // written by the daemon
	RestartStopped = "containerd.io/restart.explicitly-stopped" // true: by a person
	RestartLog     = "containerd.io/restart.loguri"             // where output goes after a restart
)

// Keys of containers that `berth run` makes.
const (
	Stdin      = "berth.dev/stdin"       // of the task, when it is started again
	AutoRemove = "berth.dev/auto-remove" // true: the container goes when its process has ended
	Dir        = "berth.dev/dir"         // directory that goes with it
	Pod        = "berth.dev/pod"         // pod without containers that gives it its network
)

// Keys of leases that berth makes for itself: which work it is, and which run of
// the daemon does it. A lease of an earlier run is left over.
const (
	LeaseWork = "io.berthd/lease.work"
	LeaseRun  = "io.berthd/lease.run"
)

// Check validates one label; the error is of kind InvalidArgument.
func Check(key, value string) error {
	if n := len(key) + len(value); n > MaxBytes {
		k := key
		if len(k) > 64 {
			k = k[:64] + "…"
		}
		return errs.New(errs.InvalidArgument, "label %q: key and value have %d bytes, at most %d are allowed", k, n, MaxBytes)
	}
	return nil
}

// CheckAll validates a set of labels.
func CheckAll(labels map[string]string) error {
	for k, v := range labels {
		if err := Check(k, v); err != nil {
			return err
		}
	}
	return nil
}

// RefContent is the label key under which a parent names its n-th child of one
// sort: "m" manifests, "l" layers, "config".
func RefContent(sort string, n int) string {
	if sort == "config" {
		return GCRefContent + ".config"
	}
	return fmt.Sprintf("%s.%s.%d", GCRefContent, sort, n)
}

// Update applies changes to labels: an empty value removes a key. It returns a
// new map.
func Update(labels, changes map[string]string) map[string]string {
	out := make(map[string]string, len(labels)+len(changes))
	for k, v := range labels {
		out[k] = v
	}
	for k, v := range changes {
		if v == "" {
			delete(out, k)
		} else {
			out[k] = v
		}
	}
	return out
}

// Snapshotter returns the driver name of a gc.ref.snapshot label key, without the
// free suffix that may follow a slash or, for names of our own, nothing.
func Snapshotter(key string) (string, bool) {
	rest, ok := strings.CutPrefix(key, GCRefSnapshot)
	if !ok {
		return "", false
	}
	name, _, _ := strings.Cut(rest, "/")
	return name, name != ""
}

// Source is the key under which content remembers the repositories of a registry
// that have it: host without port, as containerd's clients write and read it.
func Source(host string) string {
	if i := strings.LastIndexByte(host, ':'); i > 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return DistSource + strings.Trim(host, "[]")
}
