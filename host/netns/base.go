package netns

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// baseLock keeps the private mount over the pins' parent from going while a set is
// being made below it.
var baseLock sync.RWMutex

// holdBase makes sure that mounts made in base stay in this mount namespace: where
// base is on a shared mount, a private one is put over it. A pin that spread would
// be copied into every service with a mount namespace of its own.
func holdBase(base string) (unlock func(), err error) {
	baseLock.RLock()
	if ok, err := isPrivate(base); err == nil && ok {
		return baseLock.RUnlock, nil
	}
	baseLock.RUnlock()
	baseLock.Lock()
	defer func() {
		baseLock.Unlock()
		if err == nil {
			baseLock.RLock()
			unlock = baseLock.RUnlock
		}
	}()
	if err := os.MkdirAll(base, 0o711); err != nil {
		return nil, fmt.Errorf("make the directory of namespaces: %w", err)
	}
	ok, err := isPrivate(base)
	if err != nil || ok {
		return nil, err
	}
	if err := unix.Mount(base, base, "", unix.MS_BIND, ""); err != nil {
		return nil, &os.PathError{Op: "mount on itself", Path: base, Err: err}
	}
	if err := unix.Mount("", base, "", unix.MS_PRIVATE, ""); err != nil {
		return nil, errors.Join(&os.PathError{Op: "make mount private", Path: base, Err: err}, unix.Unmount(base, unix.MNT_DETACH))
	}
	return nil, nil
}

// spreads remembers the mounts that directories were found to be shared on.
var spreads struct {
	sync.Mutex
	on map[string]uint64
}

// spread makes sure that mounts made in dir are seen in the mount namespaces that
// have it from here, such as those of plugins' containers: as ip-netns(8) and other
// runtimes do it, it becomes a shared mount of its own if it is on a private one. It
// is everybody's, and stays.
func spread(dir string) error {
	spreads.Lock()
	defer spreads.Unlock()
	if id, err := mountID(dir); err == nil && spreads.on[dir] == id {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the directory of network namespaces: %w", err)
	}
	if err := share(dir); err != nil {
		return err
	}
	id, err := mountID(dir)
	if spreads.on == nil {
		spreads.on = map[string]uint64{}
	}
	spreads.on[dir] = id
	return err
}

func share(dir string) error {
	if private, err := isPrivate(dir); err != nil || !private {
		return err
	}
	if root, err := isMountRoot(dir); err != nil {
		return err
	} else if !root {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return &os.PathError{Op: "mount on itself", Path: dir, Err: err}
		}
	}
	known.Lock()
	known.mounts = nil
	known.Unlock()
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return &os.PathError{Op: "make mount shared", Path: dir, Err: err}
	}
	return nil
}

// releaseBase ends the private mount when no set is left below it. The kernel
// refuses while there is one.
func releaseBase(base string) error {
	if ok, err := isMountRoot(base); err != nil || !ok {
		return nil // nothing of ours
	}
	baseLock.Lock()
	defer baseLock.Unlock()
	if left, err := os.ReadDir(base); err != nil || len(left) > 0 {
		return nil
	}
	err := unix.Unmount(base, unix.UMOUNT_NOFOLLOW)
	known.Lock()
	known.mounts = nil // the id may be given to another
	known.Unlock()
	if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unmount", Path: base, Err: err}
	}
	return nil
}

func isMountRoot(path string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

func mountID(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		return 0, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	return st.Mnt_id, nil
}

// isPrivate reports whether the mount that path is on spreads to no other.
func isPrivate(path string) (bool, error) {
	id, err := mountID(path)
	if err != nil {
		return false, err
	}
	known.Lock()
	private, ok := known.mounts[id]
	known.Unlock()
	if ok {
		return private, nil
	}
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return false, err
	}
	private = !sharedIn(data, fmt.Sprint(id))
	if private { // one that is shared is about to be covered; ids are used again
		known.Lock()
		known.mounts = map[uint64]bool{id: true}
		known.Unlock()
	}
	return private, nil
}

// known is the last mount that was found private: reading the mount table takes long
// on a host that has many mounts.
var known struct {
	sync.Mutex
	mounts map[uint64]bool
}

// sharedIn looks a mount's id up in mountinfo (proc_pid_mountinfo(5)); the optional
// fields from the seventh on name its peer group.
func sharedIn(data []byte, id string) bool {
	for line := range bytes.Lines(data) {
		f := strings.Fields(string(line))
		if len(f) < 7 || f[0] != id {
			continue
		}
		for _, o := range f[6:] {
			if o == "-" {
				return false
			}
			if strings.HasPrefix(o, "shared:") {
				return true
			}
		}
	}
	return false
}

// Sets lists the directories of sets below base, whole or not.
func Sets(base string) ([]string, error) {
	all, err := os.ReadDir(base)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range all {
		out = append(out, filepath.Join(base, e.Name()))
	}
	return out, err
}
