package facts

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// errNoDevice is what a path is that holds no device.
var errNoDevice = errs.New(errs.InvalidArgument, "it is no device")

// Device describes the device node at a path of the host; links are followed.
func Device(path string) (specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return specs.LinuxDevice{}, err
	}
	d, err := node(real)
	d.Path = path
	return d, err
}

func node(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, &os.PathError{Op: "look at", Path: path, Err: err}
	}
	d := specs.LinuxDevice{Path: path, UID: &st.Uid, GID: &st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.Type = "b"
	case unix.S_IFCHR:
		d.Type = "c"
	default:
		return d, &os.PathError{Op: "use", Path: path, Err: errNoDevice}
	}
	mode := os.FileMode(st.Mode & 0o7777)
	d.FileMode = &mode
	d.Major, d.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	return d, nil
}

// notDevices are what is in /dev and belongs to each container itself.
var notDevices = []string{"/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev", "/dev/console"}

// Devices lists the devices below a directory of the host, in the order of their
// paths. Links and other files in it are passed over.
func Devices(dir string) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // unplugged meanwhile
		}
		if err != nil {
			return err
		}
		if slices.Contains(notDevices, p) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		d, err := node(p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoDevice) {
			return nil
		}
		out = append(out, d)
		return err
	})
	slices.SortFunc(out, func(a, b specs.LinuxDevice) int { return strings.Compare(a.Path, b.Path) })
	return out, err
}
