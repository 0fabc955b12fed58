package task

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/store"
)

// The directory names are those of containerd, which shims and tools look into.
const pluginDir = "io.containerd.runtime.v2.task"

func (t *Tasks) bundle(k key) string {
	return filepath.Join(t.cfg.State, pluginDir, k.ns, k.id)
}

func (t *Tasks) work(k key) string {
	return filepath.Join(t.cfg.Work, pluginDir, k.ns, k.id)
}

// makeBundle makes what a shim finds in its working directory:
//
//	config.json  the OCI spec     rootfs/  where it mounts     work -> kept state
func (t *Tasks) makeBundle(k key, spec store.Any) error {
	dir, work := t.bundle(k), t.work(k)
	for _, d := range []string{filepath.Dir(dir), filepath.Dir(work), work} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return fmt.Errorf("bundle of task %q: %w", k.id, err)
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("bundle of task %q: %w", k.id, err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.Mkdir(rootfs, 0o711); err != nil {
		return fmt.Errorf("bundle of task %q: %w", k.id, err)
	}
	if gid, ok := mappedRoot(spec.Value); ok {
		// The container's root must reach its rootfs, and nobody else may look in.
		if err := errors.Join(os.Chown(dir, -1, gid), os.Chmod(dir, 0o710)); err != nil {
			return fmt.Errorf("bundle of task %q: %w", k.id, err)
		}
	}
	if err := os.Symlink(work, filepath.Join(dir, "work")); err != nil {
		return fmt.Errorf("bundle of task %q: %w", k.id, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), spec.Value, 0o600); err != nil {
		return fmt.Errorf("bundle of task %q: %w", k.id, err)
	}
	return nil
}

// mappedRoot returns the host gid of a user namespace's root.
func mappedRoot(spec []byte) (int, bool) {
	var s struct {
		Linux struct {
			GIDMappings []struct{ ContainerID, HostID uint32 } `json:"gidMappings"`
		} `json:"linux"`
	}
	if json.Unmarshal(spec, &s) != nil {
		return 0, false
	}
	for _, m := range s.Linux.GIDMappings {
		if m.ContainerID == 0 {
			return int(m.HostID), true
		}
	}
	return 0, false
}

// removeBundle deletes a bundle, never through a mount: what a shim left mounted
// on the rootfs is detached first.
func (t *Tasks) removeBundle(k key) error {
	dir := t.bundle(k)
	rootfs := filepath.Join(dir, "rootfs")
	if err := mount.DetachBelow(dir); err != nil {
		return fmt.Errorf("bundle of task %q: %w", k.id, err)
	}
	if err := errs.Ignore(os.Remove(rootfs), fs.ErrNotExist); err != nil {
		// Not empty: something wrote into it while nothing was mounted there.
		t.log.Warn("the root file system directory of a task is not empty", "task", k.id, "error", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove bundle of task %q: %w", k.id, err)
	}
	if err := os.RemoveAll(t.work(k)); err != nil {
		return fmt.Errorf("remove work directory of task %q: %w", k.id, err)
	}
	return nil
}
