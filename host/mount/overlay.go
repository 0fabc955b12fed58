package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// maxData is what mount(2) takes as options: a page with its NUL.
const maxData = 4095

// overlay mounts a list of layers of any length, mapped to other ids if asked.
// mount(2) has one page for the options; beyond that, the layers are handed over
// one by one (Linux 6.7), or named from the directory that they share.
func overlay(source string, o options, at string) error {
	if o.ids != nil {
		return overlayMapped(source, o, at)
	}
	if len(o.text()) <= maxData {
		return unix.Mount(source, at, "overlay", o.flags, o.text())
	}
	lower, rest := splitLower(o.data)
	err := overlayByOne(source, o.flags, rest, at, func(fs int) error {
		for _, l := range lower {
			if err := unix.FsconfigSetString(fs, "lowerdir+", unescape(l)); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, errNoFsconfig) {
		return err
	}
	base := shared(lower)
	return overlayFrom(base, source, o.flags, rest, relative(base, lower), at)
}

// overlayMapped shows the layers through id maps: one mapped mount of the
// directory that they share, however many they are. The upper directory is not
// mapped: it belongs to one user of the layers alone.
func overlayMapped(source string, o options, at string) error {
	lower, rest := splitLower(o.data)
	base := shared(lower)
	rel := relative(base, lower)
	fd, err := o.ids.mapped(unescape(base), false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = overlayByOne(source, o.flags, rest, at, func(fs int) error { // layers by handle: Linux 6.13
		for _, r := range rel {
			l, err := unix.Openat(fd, unescape(r), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return &os.PathError{Op: "open layer", Path: r, Err: err}
			}
			err = unix.FsconfigSetFd(fs, "lowerdir+", l)
			unix.Close(l)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, errNoFsconfig) {
		return err
	}
	return overlayMappedAt(fd, source, o.flags, rest, rel, at)
}

// overlayMappedAt is for kernels that want the mapped layers to have a path: a
// directory of our own, only until the overlay is there.
func overlayMappedAt(fd int, source string, flags uintptr, rest, rel []string, at string) error {
	dir, err := os.MkdirTemp("", "berth-idmap-")
	if err != nil {
		return err
	}
	err = moveTo(fd, dir)
	if err == nil {
		err = overlayFrom(dir, source, flags, rest, rel, at)
		err = errors.Join(err, Detach(dir))
	}
	return errors.Join(err, os.Remove(dir))
}

// errNoFsconfig says that this kernel's overlay does not take layers one by one.
var errNoFsconfig = errors.New("overlay layers one by one: not supported")

// overlayByOne builds an overlay option by option and puts it at a path.
func overlayByOne(source string, flags uintptr, rest []string, at string, lower func(fs int) error) error {
	fd, err := newOverlay(source, flags, rest, lower)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return moveTo(fd, at)
}

// newOverlay builds an overlay option by option (fsopen(2)); lower adds the layers.
// It is in nobody's mount table: it ends when its handle is closed.
func newOverlay(source string, flags uintptr, rest []string, lower func(fs int) error) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return -1, errNoFsconfig
	}
	if err != nil {
		return -1, fmt.Errorf("open overlay: %w", err)
	}
	defer unix.Close(fs)
	if err := lower(fs); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return -1, errors.Join(errNoFsconfig, err)
		}
		return -1, fmt.Errorf("add layer: %w%s", err, fsLog(fs))
	}
	for _, w := range append([]string{"source=" + source}, rest...) {
		key, value, ok := strings.Cut(w, "=")
		if ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s: %w%s", w, err, fsLog(fs))
		}
	}
	if flags&unix.MS_RDONLY != 0 {
		if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
			return -1, fmt.Errorf("option ro: %w", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create: %w%s", err, fsLog(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes(flags))
	if err != nil {
		return -1, fmt.Errorf("create mount: %w%s", err, fsLog(fs))
	}
	return fd, nil
}

// fsLog is what the kernel has to say of the failure, one message for each read.
func fsLog(fs int) string {
	var out strings.Builder
	buf := make([]byte, 512)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			return out.String()
		}
		out.WriteString("; " + strings.TrimSpace(string(buf[:n])))
	}
}

// attributes turns flags of mount(2) into those of fsmount(2).
func attributes(flags uintptr) int {
	out := 0
	for _, f := range []struct {
		flag uintptr
		attr int
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME}, {unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW},
	} {
		if flags&f.flag != 0 {
			out |= f.attr
		}
	}
	switch { // one field, not bits
	case flags&unix.MS_NOATIME != 0:
		out |= unix.MOUNT_ATTR_NOATIME
	case flags&unix.MS_STRICTATIME != 0:
		out |= unix.MOUNT_ATTR_STRICTATIME
	}
	return out
}

// overlayFrom mounts with layers named from the directory base. The working
// directory belongs to the process, so this is done in a thread that stops
// sharing it and ends afterwards.
func overlayFrom(base, source string, flags uintptr, rest, rel []string, at string) error {
	at, err := filepath.Abs(at)
	if err != nil {
		return err
	}
	data := strings.Join(append([]string{"lowerdir=" + strings.Join(rel, ":")}, rest...), ",")
	if len(data) > maxData {
		return fmt.Errorf("%d layers: the options have %d bytes, at most %d are possible on this kernel: %w", len(rel), len(data), maxData, unix.E2BIG)
	}
	c := make(chan error)
	// owner: this function, which waits for the answer
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(unescape(base))
		}
		if err == nil {
			err = unix.Mount(source, at, "overlay", flags, data)
		}
		c <- err
	}()
	return <-c
}

// splitLower takes the list of layers out of the options. A colon in a path is
// escaped by a backslash (overlayfs.rst, "Multiple lower layers").
func splitLower(data []string) (lower, rest []string) {
	for _, w := range data {
		list, ok := strings.CutPrefix(w, "lowerdir=")
		if !ok {
			rest = append(rest, w)
			continue
		}
		start := 0
		for i := 0; i < len(list); i++ {
			switch list[i] {
			case '\\':
				i++
			case ':':
				lower = append(lower, list[start:i])
				start = i + 1
			}
		}
		lower = append(lower, list[start:])
	}
	return lower, rest
}

func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// shared is the directory that all layers are below.
func shared(lower []string) string {
	if len(lower) == 0 {
		return "/"
	}
	base := filepath.Dir(lower[0])
	for _, l := range lower[1:] {
		for base != "/" && base != "." && !strings.HasPrefix(l, base+"/") {
			base = filepath.Dir(base)
		}
	}
	return base
}

func relative(base string, lower []string) []string {
	out := make([]string, len(lower))
	for i, l := range lower {
		out[i] = strings.TrimPrefix(strings.TrimPrefix(l, base), "/")
	}
	return out
}
