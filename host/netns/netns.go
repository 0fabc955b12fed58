// Package netns makes the namespaces of a pod and pins them as files: bind mounts of
// nsfs below a directory that the caller derives from the pod's id. The pins outlive
// this process; any later one removes them by the directory alone.
//
// The package owns nothing but those files, and a private mount over their parent
// where the host would spread the pins to other mount namespaces. It never starts a
// program, save the short-lived one that a user namespace needs, and it never
// leaves a thread of this process in a foreign namespace.
package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/host/mount"
)

// Set is the paths of a pod's pinned namespaces; "" where the pod has the host's.
type Set struct{ Net, IPC, UTS, User string }

// Options says which namespaces to make and what to set in them.
type Options struct {
	Net, IPC, UTS bool
	Hostname      string            // of the new UTS namespace; "" leaves the host's name
	Sysctls       map[string]string // each must belong to one of the new namespaces
	User          *User             // nil: the host's
	// NetAt is where the network namespace is pinned instead of below the directory,
	// which then has a link to it; "" is below. Plugins that look at pods' namespaces
	// from a container of theirs have one well-known directory of them mounted there.
	NetAt string
}

// User is a new user namespace, which will own the other new ones.
type User struct {
	UIDs, GIDs []Mapping
	// Hold is the command line of a program that waits to be killed. It runs in the new
	// namespaces until they are pinned: only a process with one thread can enter
	// a user namespace (user_namespaces(7)). If we die, so does it.
	Hold []string
}

// Mapping is one line of uid_map or gid_map.
type Mapping struct{ Inside, Outside, Size uint32 }

// kind is one sort of namespace: its file in /proc/PID/ns, which is also the name of
// its pin, and its flag of clone(2).
type kind struct {
	name string
	flag int
}

var kinds = []kind{{"net", unix.CLONE_NEWNET}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS}, {"user", unix.CLONE_NEWUSER}}

func (o *Options) wanted() []kind {
	var out []kind
	for i, want := range []bool{o.Net, o.IPC, o.UTS, o.User != nil} {
		if want {
			out = append(out, kinds[i])
		}
	}
	return out
}

func flags(list []kind) int {
	var f int
	for _, k := range list {
		f |= k.flag
	}
	return f
}

// Make makes the namespaces and pins them below dir, which it makes too. The
// loopback interface of a new network namespace is up. What a failed call leaves is
// for Remove; a directory that has pins already is an error of kind AlreadyExists.
func Make(ctx context.Context, dir string, o Options) (Set, error) {
	if err := ctx.Err(); err != nil {
		return Set{}, context.Cause(ctx)
	}
	list := o.wanted()
	if err := o.check(); err != nil {
		return Set{}, err
	}
	unlock, err := holdBase(filepath.Dir(dir))
	if err != nil {
		return Set{}, err
	}
	defer unlock()
	if err := os.Mkdir(dir, 0o711); err != nil {
		return Set{}, fmt.Errorf("make the directory of namespaces: %w", kinded(err))
	}
	for _, k := range list {
		at := filepath.Join(dir, k.name)
		if k.flag == unix.CLONE_NEWNET && o.NetAt != "" {
			// The link first: what it leads to is found again by it.
			if err := os.Symlink(o.NetAt, at); err != nil {
				return Set{}, fmt.Errorf("make the link to the network namespace: %w", err)
			}
			if err := spread(filepath.Dir(o.NetAt)); err != nil {
				return Set{}, err
			}
			at = o.NetAt
		}
		f, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL, 0o444)
		if err != nil {
			return Set{}, fmt.Errorf("make the file of the %s namespace: %w", k.name, err)
		}
		_ = f.Close() // empty: nothing to lose
	}
	failpoint.Here("netns.files")
	if o.User != nil {
		err = makeOwned(ctx, dir, list, o)
	} else {
		err = onThread(func() error {
			if err := unix.Unshare(flags(list)); err != nil {
				return fmt.Errorf("make namespaces: unshare: %w", hint(err))
			}
			return errors.Join(o.fill(), pinAll(dir, "/proc/thread-self/ns", list))
		})
	}
	if err != nil {
		return Set{}, err
	}
	failpoint.Here("netns.pinned")
	return Open(dir), nil
}

func (o *Options) check() error {
	for k := range o.Sysctls {
		if err := o.owns(k); err != nil {
			return err
		}
	}
	if o.User != nil && (len(o.User.Hold) == 0 || len(o.User.UIDs) == 0 || len(o.User.GIDs) == 0) {
		return errs.New(errs.InvalidArgument, "a user namespace needs mappings of users and groups, and a program to hold it")
	}
	return nil
}

// fill sets what the options say. The calling thread is in the namespaces.
func (o *Options) fill() error {
	if o.Net {
		if err := linkUp("lo"); err != nil {
			return err
		}
	}
	if o.UTS && o.Hostname != "" {
		if err := unix.Sethostname([]byte(o.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", o.Hostname, err)
		}
	}
	return setAll(o.Sysctls)
}

func pinAll(dir, from string, list []kind) error {
	for _, k := range list {
		at := filepath.Join(dir, k.name)
		if err := unix.Mount(filepath.Join(from, k.name), at, "", unix.MS_BIND, ""); err != nil {
			return &os.PathError{Op: "pin " + k.name + " namespace at", Path: at, Err: err}
		}
	}
	return nil
}

// Open returns what is pinned below dir; what is not there is "".
func Open(dir string) Set {
	var s Set
	for i, p := range []*string{&s.Net, &s.IPC, &s.UTS, &s.User} {
		if path := place(filepath.Join(dir, kinds[i].name)); isPin(path) {
			*p = path
		}
	}
	return s
}

// place is where a pin is: the path itself, or what it is a link to.
func place(path string) string {
	if to, err := os.Readlink(path); err == nil {
		return to
	}
	return path
}

// nsfsMagic is NSFS_MAGIC of linux/magic.h.
const nsfsMagic = 0x6e736673

func isPin(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == nsfsMagic
}

// Remove takes the pins below dir away and the directory with them. The namespaces
// end when their last process has. What is not there is no error, so a half made or
// half removed set may be given.
func Remove(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	base := filepath.Dir(dir)
	var all []error
	for _, k := range kinds {
		at := filepath.Join(dir, k.name)
		if _, err := os.Lstat(at); err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				all = append(all, err)
			}
			continue
		}
		// Unlinking ends the copies that other mount namespaces have of the mount.
		real := place(at)
		err := mount.Detach(real)
		if err == nil {
			failpoint.Here("netns.detached")
			err = os.Remove(real)
		}
		if real != at && (err == nil || errors.Is(err, os.ErrNotExist)) {
			err = os.Remove(at)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			all = append(all, fmt.Errorf("unpin %s namespace: %w", k.name, err))
		}
	}
	if err := errors.Join(all...); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the directory of namespaces: %w", err)
	}
	return releaseBase(base)
}

// kinded gives errors of the kernel a kind.
func kinded(err error) error {
	if errors.Is(err, os.ErrExist) {
		return errs.New(errs.AlreadyExists, "%w", err)
	}
	return err
}

// hint says what to do about the kernel's limits on namespaces.
func hint(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: a limit in /proc/sys/user/max_*_namespaces is reached", err)
	}
	return err
}
