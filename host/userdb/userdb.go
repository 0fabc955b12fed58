// Package userdb finds out who a container runs as: it reads /etc/passwd and
// /etc/group of an image the way login programs do. The files are hostile: they are
// opened without leaving the root file system, read with bounds, and what cannot be
// understood in them is passed over.
package userdb

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// MaxID is the largest user or group id that may be asked for: larger ones do not
// fit the 32-bit signed ids that some programs keep (CVE-2024-40635).
const MaxID = 1<<31 - 1

// Bounds of what is read out of an image.
const (
	maxFile   = 16 << 20 // bytes of one file; an organisation with 100,000 users needs 8 MiB
	maxGroups = 65536    // NGROUPS_MAX of the kernel
)

// Ask says who the container shall run as.
type Ask struct {
	User   string   // name or number of the user; "" is root
	Group  string   // name or number of the primary group; "" is the user's own
	Groups []uint32 // supplemental groups beside those of the image
	// Strict leaves the groups out that the image's /etc/group has the user in.
	Strict bool
}

// User is who a container runs as.
type User struct {
	UID    uint32
	GID    uint32
	Groups []uint32 // supplemental groups, the primary one first (CVE-2022-36109)
	Name   string   // in /etc/passwd, or ""
	Home   string   // in /etc/passwd, or ""
}

// Lookup resolves what was asked for in the files of the root file system at dir.
// A name that is not there is NotFound; a number needs no entry.
func Lookup(dir string, ask Ask) (User, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return User{}, &os.PathError{Op: "open root file system", Path: dir, Err: err}
	}
	defer unix.Close(root)
	var u User
	err = within(root, "etc/passwd", func(r io.Reader) error { return u.find(r, ask) })
	if err != nil {
		return User{}, err
	}
	own := []uint32{}
	err = within(root, "etc/group", func(r io.Reader) (err error) { own, err = u.groups(r, ask); return err })
	if err != nil {
		return User{}, err
	}
	u.Groups = merge(u.GID, own, ask.Groups)
	if len(u.Groups) > maxGroups {
		return User{}, errs.New(errs.InvalidArgument, "user %q is in %d groups, the kernel takes %d", ask.User, len(u.Groups), maxGroups)
	}
	return u, nil
}

// merge lists each group once, the primary one first.
func merge(primary uint32, lists ...[]uint32) []uint32 {
	out := []uint32{primary}
	seen := map[uint32]bool{primary: true}
	for _, g := range slices.Concat(lists...) {
		if !seen[g] {
			seen[g] = true
			out = append(out, g)
		}
	}
	return out
}

// within runs fn on a file below root; one that is not there is empty. Links are
// followed as the container would follow them, never out of the root.
func within(root int, name string, fn func(io.Reader) error) error {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(root, name, &how)
	for n := 0; errors.Is(err, unix.EAGAIN) && n < 64; n++ { // a rename interfered
		fd, err = unix.Openat2(root, name, &how)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return fn(strings.NewReader(""))
	}
	if err != nil {
		return errs.New(errs.InvalidArgument, "open /%s of the image: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() // only read from
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errs.New(errs.InvalidArgument, "/%s of the image is no regular file", name)
	}
	if st.Size() > maxFile {
		return errs.New(errs.InvalidArgument, "/%s of the image has %d bytes, at most %d are read", name, st.Size(), maxFile)
	}
	if err := fn(io.LimitReader(f, maxFile)); err != nil {
		return fmt.Errorf("/%s of the image: %w", name, err)
	}
	return nil
}

// find takes user and primary group from /etc/passwd. A number is never looked up
// as a name: an image with a user called "1000" who is root would get it. The
// primary group of a number without an entry is 0.
func (u *User) find(r io.Reader, ask Ask) error {
	want := ask.User
	if want == "" {
		want = "0"
	}
	id, numeric, err := number(want)
	if err != nil {
		return fmt.Errorf("user %q: %w", want, err)
	}
	found := numeric
	u.UID = id
	err = lines(r, func(line string) bool {
		p, ok := parsePasswd(line)
		if !ok || numeric && p.uid != id || !numeric && p.name != want {
			return true
		}
		found = true
		u.UID, u.GID, u.Name, u.Home = p.uid, p.gid, p.name, p.home
		return false
	})
	if err == nil && !found {
		return errs.New(errs.NotFound, "there is no user %q", want)
	}
	return err
}

// groups resolves the primary group, and lists the groups that have the user as a
// member.
func (u *User) groups(r io.Reader, ask Ask) ([]uint32, error) {
	id, numeric, err := number(ask.Group)
	if err != nil {
		return nil, fmt.Errorf("group %q: %w", ask.Group, err)
	}
	found := ask.Group == "" || numeric
	if numeric {
		u.GID = id
	}
	var out []uint32
	err = lines(r, func(line string) bool {
		g, ok := parseGroup(line)
		if !ok {
			return true
		}
		if !found && g.name == ask.Group {
			u.GID, found = g.gid, true
		}
		if !ask.Strict && u.Name != "" && len(out) < maxGroups && g.has(u.Name) {
			out = append(out, g.gid)
		}
		return true
	})
	if err == nil && !found {
		return nil, errs.New(errs.NotFound, "there is no group %q", ask.Group)
	}
	return out, err
}

// number reads an id. What is no number at all is a name; a number that is no
// possible id is an error, never a name.
func number(s string) (id uint32, numeric bool, err error) {
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > MaxID {
		return 0, false, errs.New(errs.InvalidArgument, "an id is a number from 0 to %d", MaxID)
	}
	return uint32(n), true, nil
}
