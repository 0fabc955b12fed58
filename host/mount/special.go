package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

// loop mounts a file: on a loop device that goes when the mount goes.
func loop(m spec.Mount, o options, at string) error {
	dev, err := loopDevice(m.Source, o.flags&unix.MS_RDONLY != 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	return unix.Mount(dev.Name(), at, m.Type, o.flags, o.text())
}

// loopDevice puts a file on a free loop device, which frees itself when the last
// handle and the last mount of it are gone (loop(4)).
func loopDevice(path string, readOnly bool) (*os.File, error) {
	mode := os.O_RDWR
	cfg := unix.LoopConfig{}
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if readOnly {
		mode = os.O_RDONLY
		cfg.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	backing, err := os.OpenFile(path, mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	cfg.Fd = uint32(backing.Fd())
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], path)
	for range 64 { // between asking and taking, another may take it
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
		if err != nil {
			return nil, err
		}
		if err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg); err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("put %s on loop device %d: %w", path, n, err)
		}
	}
	return nil, errs.New(errs.Unavailable, "loop device for %s: others take them all", path)
}

// fuse runs the program that mounts file systems of type fuse.X and fuse3.X.
func fuse(m spec.Mount, at string) error {
	family, name, _ := strings.Cut(m.Type, ".")
	program := "mount." + family // mount.fuse, mount.fuse3
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("find the program for %s: %w", m.Type, err)
	}
	if strings.HasPrefix(m.Source, "-") || name == "" {
		return errs.New(errs.InvalidArgument, "source %q of a mount of type %q", m.Source, m.Type)
	}
	if real, err := os.Readlink(at); err == nil && strings.HasPrefix(at, "/proc/self/fd/") {
		at = real // the program has other handles
	}
	args := []string{m.Source, at}
	for _, o := range m.Options {
		args = append(args, "-o", o)
	}
	args = append(args, "-t", name)
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %.1024s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}
