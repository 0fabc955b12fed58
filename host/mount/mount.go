// Package mount makes and ends the mounts that snapshot drivers describe, for the
// daemon and for the shim: bind, overlay with any number of layers, loop devices,
// id-mapped mounts and fuse programs. It keeps no state; the kernel's table is the
// only truth about mounts.
package mount

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

// All makes the mounts in their order below the directory target, which must
// exist, as must each Target inside it; those are resolved inside it, links too. If
// one fails, those before it are ended again.
func All(mounts []spec.Mount, target string) error {
	for i, m := range mounts {
		err := one(m, target)
		if err == nil {
			continue
		}
		err = fmt.Errorf("mount %s: %w", describe(m, target), err)
		for ; i > 0; i-- {
			err = errors.Join(err, undo(mounts[i-1], target))
		}
		return err
	}
	return nil
}

func describe(m spec.Mount, target string) string {
	if m.Target != "" {
		target += " in it at " + m.Target
	}
	s := fmt.Sprintf("%s %q on %s", m.Type, m.Source, target)
	if len(m.Options) == 0 {
		return s
	}
	o := strings.Join(m.Options, ",")
	if len(o) > 1024 {
		o = o[:1024] + "…"
	}
	return s + " with " + o
}

func one(m spec.Mount, target string) error {
	o, err := parse(m.Options)
	if err != nil {
		return err
	}
	p := place{target, m.Target}
	if err := p.do(func(at string) error { return attach(m, o, at) }); err != nil {
		return err
	}
	// Flags and propagation are of what is there now, so the place is looked up anew.
	err = p.do(func(at string) error { return adjust(m, o, at) })
	if err != nil {
		return errors.Join(err, undo(m, target))
	}
	return nil
}

// attach puts a file system or a tree at the path at.
func attach(m spec.Mount, o options, at string) error {
	switch {
	case strings.HasPrefix(m.Type, "fuse.") || strings.HasPrefix(m.Type, "fuse3."):
		return fuse(m, at)
	case isBind(m, o) && o.ids != nil:
		return bindMapped(m.Source, o, at)
	case isBind(m, o):
		rec := o.flags & unix.MS_REC
		if m.Type == "rbind" {
			rec = unix.MS_REC
		}
		return unix.Mount(m.Source, at, "", unix.MS_BIND|rec, "")
	case m.Type == "overlay":
		return overlay(m.Source, o, at)
	case o.ids != nil:
		return errs.New(errs.InvalidArgument, "uidmap and gidmap are for bind and overlay mounts")
	case o.loop:
		return loop(m, o, at)
	}
	return unix.Mount(m.Source, at, m.Type, o.flags, o.text())
}

func isBind(m spec.Mount, o options) bool {
	return o.flags&unix.MS_BIND != 0 || m.Type == "bind" || m.Type == "rbind"
}

// adjust sets what the first call does not take: the flags of a bind mount
// (mount(2), "Creating a bind mount") and propagation.
func adjust(m spec.Mount, o options, at string) error {
	if isBind(m, o) {
		if err := remount(at, o.flags&^(unix.MS_BIND|unix.MS_REC)); err != nil {
			return err
		}
	}
	for _, p := range o.propagation {
		if err := unix.Mount("", at, "", p, ""); err != nil {
			return fmt.Errorf("set propagation %#x: %w", p, err)
		}
	}
	return nil
}

// place is sub inside root, wherever links lead, but never outside.
type place struct{ root, sub string }

func (p place) isRoot() bool { return p.sub == "" || p.sub == "/" }

// do runs f with a path that means the place while f runs.
func (p place) do(f func(at string) error) error {
	if p.isRoot() {
		return f(p.root)
	}
	dir, err := unix.Open(p.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: p.root, Err: err}
	}
	defer unix.Close(dir)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(dir, p.sub, &how)
	for n := 0; err == unix.EAGAIN && n < 64; n++ { // a rename interfered
		runtime.Gosched()
		fd, err = unix.Openat2(dir, p.sub, &how)
	}
	if err != nil {
		return &os.PathError{Op: "open in " + p.root, Path: p.sub, Err: err}
	}
	defer unix.Close(fd)
	return f(fdPath(fd))
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// undo ends the topmost mount at a place where one was just made. Nothing uses it
// yet, so detaching is ending; the handle of the place would make it busy.
func undo(m spec.Mount, target string) error {
	return place{target, m.Target}.do(func(at string) error {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			return &os.PathError{Op: "unmount", Path: at, Err: err}
		}
		return nil
	})
}

func remount(at string, flags uintptr) error {
	if flags == 0 {
		return nil
	}
	flags |= unix.MS_BIND | unix.MS_REMOUNT
	err := unix.Mount("", at, "", flags, "")
	if err == unix.EPERM {
		// In a user namespace the flags that the source has are locked: keep them.
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil {
			return fmt.Errorf("read mount flags: %w", err)
		}
		const locked = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NOATIME | unix.ST_NODIRATIME | unix.ST_RELATIME | unix.ST_RDONLY
		err = unix.Mount("", at, "", flags|mountFlags(st.Flags&locked), "")
	}
	if err != nil {
		return fmt.Errorf("set flags: %w", err)
	}
	return nil
}

// mountFlags turns statfs flags into mount flags; all have the same bits but one.
func mountFlags(st int64) uintptr {
	f := uintptr(st &^ unix.ST_RELATIME)
	if st&unix.ST_RELATIME != 0 {
		f |= unix.MS_RELATIME
	}
	return f
}

// ReadOnly returns the mounts changed so that nothing below them can be written:
// overlay without its upper directory, which becomes the first of its layers.
func ReadOnly(mounts []spec.Mount) []spec.Mount {
	out := make([]spec.Mount, 0, len(mounts))
	for _, m := range mounts {
		if m.Type == "overlay" {
			m.Options = readOnlyOverlay(m.Options)
		} else {
			m.Options = append(without(m.Options, "rw", "ro"), "ro")
		}
		out = append(out, m)
	}
	return out
}

func without(list []string, drop ...string) []string {
	var out []string
	for _, o := range list {
		keep := true
		for _, d := range drop {
			keep = keep && o != d
		}
		if keep {
			out = append(out, o)
		}
	}
	return out
}

func readOnlyOverlay(list []string) []string {
	var out []string
	upper := ""
	for _, o := range list {
		if u, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = u
		} else if !strings.HasPrefix(o, "workdir=") && o != "volatile" {
			out = append(out, o)
		}
	}
	for i, o := range out {
		if l, ok := strings.CutPrefix(o, "lowerdir="); ok && upper != "" {
			out[i] = "lowerdir=" + upper + ":" + l
		}
	}
	return out
}
