package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/host/tree"
)

// facts are what this machine's overlay can do.
type facts struct {
	options []string // for every overlay mount
	userns  bool     // we are root in a user namespace only
	remap   bool     // layers can be shown through id maps (Linux 5.19)
}

// probe mounts a small overlay below root, because only that tells: file systems
// without d_type or xattrs, overlay on overlay, and old kernels all fail here.
func probe(root string, added []string) (f facts, err error) {
	if f.userns, err = inUserNamespace(); err != nil {
		return f, err
	}
	// index keeps a lock on the upper directory; containerd's clients expect it off.
	own := func(o string) bool { return strings.HasPrefix(o, "index=") }
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil && !slices.ContainsFunc(added, own) {
		f.options = append(f.options, "index=off")
	}
	if f.userns {
		f.options = append(f.options, "userxattr")
	}
	f.options = append(f.options, added...)
	key, err := probeKey(root, f)
	if err != nil {
		return f, err
	}
	if remap, known := recall(root, key); known {
		f.remap = remap
		return f, nil
	}
	old, err := filepath.Glob(filepath.Join(root, "probe-*"))
	if err != nil {
		return f, err
	}
	for _, o := range old { // of a start that was killed
		if err := mount.Detach(filepath.Join(o, "merged")); err != nil {
			return f, err
		}
		if err := tree.RemovePath(o); err != nil {
			return f, err
		}
	}
	dir, err := os.MkdirTemp(root, "probe-")
	if err == nil {
		defer func() { err = errors.Join(err, tree.RemovePath(dir)) }()
		err = try(dir, f.options, nil)
	}
	if full(err) {
		// Nothing can be tried, and to go without overlay until the next start would
		// be worse: what is there must be usable, if only to make room.
		f.remap = !f.userns
		return f, nil
	}
	if err != nil {
		return f, err
	}
	f.remap = !f.userns && try(dir, f.options, []string{"uidmap=0:65536:65536", "gidmap=0:65536:65536"}) == nil
	return f, remember(root, key, f.remap)
}

// probedFile keeps what a trial has shown, in two lines: the key and whether layers
// can be remapped. A trial waits for the kernel several times, and a daemon that is
// started again should not.
const probedFile = "probed"

// probeKey is all that a trial's outcome depends on: the running kernel, the file
// system, and the options.
func probeKey(root string, f facts) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: root, Err: err}
	}
	return fmt.Sprintf("%s %d %v %q", bytes.TrimSpace(boot), st.Dev, f.userns, f.options), nil
}

func recall(root, key string) (remap, known bool) {
	data, err := os.ReadFile(filepath.Join(root, probedFile))
	if err != nil {
		return false, false
	}
	rest, known := strings.CutPrefix(string(data), key+"\n")
	return rest == "true\n", known && (rest == "true\n" || rest == "false\n")
}

func remember(root, key string, remap bool) error {
	next := filepath.Join(root, "."+probedFile)
	if err := os.WriteFile(next, fmt.Appendf(nil, "%s\n%t\n", key, remap), 0o600); err != nil {
		return err
	}
	return os.Rename(next, filepath.Join(root, probedFile))
}

func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// try mounts two layers and an upper directory and looks for a whiteout's effect.
func try(dir string, options, ids []string) (err error) {
	for _, sub := range []string{"a", "b", "upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "a", "hidden"), nil, 0o644); err != nil {
		return err
	}
	if err := unix.Mknod(filepath.Join(dir, "b", "hidden"), unix.S_IFCHR, 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make whiteout: %w", err)
	}
	in := func(s string) string { return escape(filepath.Join(dir, s)) }
	opts := append(append([]string{}, ids...), options...)
	opts = append(opts, "workdir="+in("work"), "upperdir="+in("upper"), "lowerdir="+in("b")+":"+in("a"))
	merged := filepath.Join(dir, "merged")
	if err := mount.All([]spec.Mount{{Type: "overlay", Source: "overlay", Options: opts}}, merged); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(merged)) }()
	if _, err := os.Lstat(filepath.Join(merged, "hidden")); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("a whiteout does not hide: %w", err)
	}
	return os.WriteFile(filepath.Join(merged, "written"), nil, 0o644)
}

// inUserNamespace reports whether our ids are not the machine's: only the first
// namespace maps all of them to themselves (user_namespaces(7)).
func inUserNamespace() (bool, error) {
	data, err := os.ReadFile("/proc/self/uid_map")
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // a kernel without them
	}
	return strings.Join(strings.Fields(string(data)), " ") != "0 0 4294967295", err
}
