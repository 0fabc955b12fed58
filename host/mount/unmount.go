package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/spec"
)

// maxStacked bounds how many mounts on top of each other are ended in one call.
const maxStacked = 1024

// Unmount ends all mounts at target, the last made first. Nothing mounted there,
// or no such path, is no error. A mount that is in use is waited for, up to a
// second, then it is EBUSY.
func Unmount(target string) error { return unmount(target, 0) }

// Detach is Unmount for a mount that is in use: it is taken out of sight now and
// ends when its last user does. What is mounted below it goes too.
func Detach(target string) error { return unmount(target, unix.MNT_DETACH) }

// DetachBelow detaches all that is mounted on a directory and in it, what is inside
// before what it is in.
func DetachBelow(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil // the mount table need not be read
	}
	points, err := Points(dir)
	if err != nil {
		return err
	}
	slices.Sort(points)
	slices.Reverse(points)
	for _, p := range points {
		if err := Detach(p); err != nil {
			return err
		}
	}
	return nil
}

func unmount(target string, flags int) error {
	const step = 20 * time.Millisecond
	busy := time.Now().Add(time.Second)
	for n := 0; n < maxStacked; {
		switch err := unix.Unmount(target, flags|unix.UMOUNT_NOFOLLOW); {
		case err == nil:
			n++
		case err == unix.EINVAL || err == unix.ENOENT:
			return nil
		case err == unix.EBUSY && time.Now().Before(busy):
			time.Sleep(step)
		default:
			return &os.PathError{Op: "unmount", Path: target, Err: err}
		}
	}
	return &os.PathError{Op: "unmount", Path: target, Err: fmt.Errorf("more than %d mounts: %w", maxStacked, unix.EBUSY)}
}

// Temp makes the mounts on a new private directory, runs f with it and ends them.
// Overlay's "volatile" is left out: it would keep the layer from being mounted
// again (overlayfs.rst, "Volatile mount").
func Temp(ctx context.Context, mounts []spec.Mount, f func(root string) error) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	root, err := os.MkdirTemp("", "berth-mount-")
	if err != nil {
		return fmt.Errorf("make directory to mount on: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(root)) }()
	lasting := make([]spec.Mount, len(mounts))
	for i, m := range mounts {
		if lasting[i] = m; m.Type == "overlay" {
			lasting[i].Options = without(m.Options, "volatile")
		}
	}
	if err := All(lasting, root); err != nil {
		return err
	}
	defer func() {
		if e := Unmount(root); e != nil { // busy, or mounts inside it
			err = errors.Join(err, Detach(root))
		}
	}()
	return f(root)
}

// Points lists the mount points at prefix and below it, in the order in which
// they were mounted. A point that has several mounts is there as often.
func Points(prefix string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return points(data, filepath.Clean(prefix)), nil
}

// points reads mountinfo (proc_pid_mountinfo(5)); the mount point is field 5:
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func points(data []byte, prefix string) []string {
	var out []string
	for line := range bytes.Lines(data) {
		f := strings.SplitN(string(line), " ", 6)
		if len(f) < 6 {
			continue
		}
		p := decode(f[4])
		if p == prefix || prefix == "/" || strings.HasPrefix(p, prefix+"/") {
			out = append(out, p)
		}
	}
	return out
}

// decode undoes the kernel's escapes: space, tab, newline and backslash are \ and
// three octal digits.
func decode(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// Look is Temp for mounts that f only reads from. Where the kernel can, they are not
// put into the mount table at all: that is quicker, and a death in between leaves
// nothing behind. root is then a link in /proc that only this process can follow:
// what f opens must be root followed, or something below it.
func Look(ctx context.Context, mounts []spec.Mount, f func(root string) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	mounts = ReadOnly(mounts)
	fd, ok := detached(mounts)
	if !ok {
		return Temp(ctx, mounts, f)
	}
	defer unix.Close(fd)
	return f(fdPath(fd))
}

// detached makes an overlay of one mount that is only read, if this kernel can do
// so without a place to put it.
func detached(mounts []spec.Mount) (fd int, ok bool) {
	if len(mounts) != 1 || mounts[0].Type != "overlay" || mounts[0].Target != "" {
		return -1, false
	}
	o, err := parse(mounts[0].Options)
	if err != nil || o.ids != nil || len(o.propagation) > 0 {
		return -1, false
	}
	lower, rest := splitLower(o.data)
	for _, w := range rest {
		if strings.HasPrefix(w, "upperdir=") {
			return -1, false
		}
	}
	fd, err = newOverlay(mounts[0].Source, o.flags|unix.MS_RDONLY, rest, func(fs int) error {
		for _, l := range lower {
			if err := unix.FsconfigSetString(fs, "lowerdir+", unescape(l)); err != nil {
				return err
			}
		}
		return nil
	})
	return fd, err == nil
}
