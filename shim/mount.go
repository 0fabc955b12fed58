package shim

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

// Mounter makes and ends the mounts of a root file system.
type Mounter interface {
	// Mount makes the mounts, in order, on root or below it.
	Mount(mounts []spec.Mount, root string) error
	// Unmount ends all mounts on root and below. Nothing mounted is no error.
	Unmount(root string) error
}

// kernelMounts knows bind mounts and what mount(2) knows.
type kernelMounts struct{}

// maxData is what mount(2) takes as data: one page.
const maxData = 4095

// flagOf knows the options of mount(8) that set or clear a flag. It is no map
// because that would take memory for as long as the shim lives.
func flagOf(option string) (set, clear, spread uintptr, known bool) {
	rec := uintptr(0)
	name := option
	switch option {
	case "rbind", "rprivate", "rslave", "rshared", "runbindable":
		rec, name = unix.MS_REC, option[1:]
	}
	switch name {
	case "defaults":
	case "bind":
		set = unix.MS_BIND | rec
	case "private":
		spread = unix.MS_PRIVATE | rec
	case "slave":
		spread = unix.MS_SLAVE | rec
	case "shared":
		spread = unix.MS_SHARED | rec
	case "unbindable":
		spread = unix.MS_UNBINDABLE | rec
	case "ro":
		set = unix.MS_RDONLY
	case "rw":
		clear = unix.MS_RDONLY
	case "nosuid":
		set = unix.MS_NOSUID
	case "suid":
		clear = unix.MS_NOSUID
	case "nodev":
		set = unix.MS_NODEV
	case "dev":
		clear = unix.MS_NODEV
	case "noexec":
		set = unix.MS_NOEXEC
	case "exec":
		clear = unix.MS_NOEXEC
	case "noatime":
		set = unix.MS_NOATIME
	case "atime":
		clear = unix.MS_NOATIME
	case "nodiratime":
		set = unix.MS_NODIRATIME
	case "relatime":
		set = unix.MS_RELATIME
	case "strictatime":
		set = unix.MS_STRICTATIME
	case "sync":
		set = unix.MS_SYNCHRONOUS
	case "async":
		clear = unix.MS_SYNCHRONOUS
	case "dirsync":
		set = unix.MS_DIRSYNC
	case "nosymfollow":
		set = unix.MS_NOSYMFOLLOW
	default:
		return 0, 0, 0, false
	}
	return set, clear, spread, true
}

func (kernelMounts) Mount(mounts []spec.Mount, root string) error {
	for _, m := range mounts {
		if err := mountOne(m, root); err != nil {
			return fmt.Errorf("mount %s %s: %w", m.Type, m.Source, err)
		}
	}
	return nil
}

func mountOne(m spec.Mount, root string) error {
	target := root
	if m.Target != "" && m.Target != "/" {
		// The root may hold links that lead out of it.
		dir, err := openInRoot(root, m.Target)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(dir) }()
		target = "/proc/self/fd/" + strconv.Itoa(dir)
	}
	flags, spread, data, err := parseOptions(m.Options)
	if err != nil {
		return err
	}
	if m.Type == "bind" {
		flags |= unix.MS_BIND
	}
	if err := unix.Mount(m.Source, target, m.Type, flags, data); err != nil {
		return err
	}
	// A bind mount takes its flags only when it is mounted again.
	if rest := flags &^ (unix.MS_BIND | unix.MS_REC); flags&unix.MS_BIND != 0 && rest != 0 {
		if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|rest, ""); err != nil {
			return fmt.Errorf("set flags: %w", err)
		}
	}
	if spread != 0 {
		return unix.Mount("", target, "", spread, "")
	}
	return nil
}

// parseOptions sorts options into flags, propagation, and what the file system
// itself is told.
func parseOptions(options []string) (flags, spread uintptr, data string, err error) {
	var rest []string
	for _, o := range options {
		set, clear, sp, known := flagOf(o)
		switch {
		case known:
			flags = flags&^clear | set
			spread |= sp
		case o == "loop" || strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap="):
			return 0, 0, "", errs.New(errs.Unimplemented, "option %q", o)
		case strings.HasPrefix(o, "X-") || strings.HasPrefix(o, "x-"):
		default:
			rest = append(rest, o)
		}
	}
	data = strings.Join(rest, ",")
	if len(data) > maxData {
		err = errs.New(errs.InvalidArgument, "options take %d bytes, at most %d are allowed", len(data), maxData)
	}
	return flags, spread, data, err
}

func openInRoot(root, path string) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(dir) }()
	return unix.Openat2(dir, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
}

// busyFor is how long a mount may be busy before it is only detached: whoever
// still uses it keeps it alive, and nobody can reach it any more.
const busyFor = time.Second

func (kernelMounts) Unmount(root string) error {
	points, err := mountPoints(root)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", root, err)
	}
	deadline := time.Now().Add(busyFor)
	for _, p := range slices.Backward(points) {
		flags := unix.UMOUNT_NOFOLLOW
		for {
			err := unix.Unmount(p, flags)
			if err == nil || err == unix.EINVAL || err == unix.ENOENT {
				break
			}
			if err != unix.EBUSY || flags&unix.MNT_DETACH != 0 {
				return fmt.Errorf("unmount %s: %w", p, err)
			}
			if time.Now().After(deadline) {
				flags |= unix.MNT_DETACH
				continue
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// mountPoints lists what is mounted at or below root, in the order it was mounted.
func mountPoints(root string) ([]string, error) {
	root, err := realDir(root)
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var out []string
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		// id parent major:minor root mount-point options … (proc(5))
		words := strings.Fields(s.Text())
		if len(words) < 5 {
			continue
		}
		if p := unescape(words[4]); p == root || strings.HasPrefix(p, root+"/") {
			out = append(out, p)
		}
	}
	return out, s.Err()
}

// realDir resolves links above the last element; the last is never a link here.
func realDir(path string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return path, nil
	}
	return filepath.Join(dir, filepath.Base(path)), err
}

// unescape undoes \040 and the like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
