package rootfs

import (
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/base/errs"
)

// Reader reads a file of the container's root file system.
type Reader func(name string) ([]byte, error)

// maxID is the largest user or group number.
const maxID = 1<<31 - 1

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}

// User looks up "user[:group]" and further groups by name or number in an image's
// /etc/passwd and /etc/group, and returns the user's home. An empty text is root.
// Numbers need not be in the files; names must be.
func User(text string, more []string, read Reader) (rspec.User, string, error) {
	name, group, grouped := strings.Cut(text, ":")
	if name == "" {
		name = "0"
	}
	passwd, err := database(read, "/etc/passwd")
	if err != nil {
		return rspec.User{}, "", err
	}
	groups, err := database(read, "/etc/group")
	if err != nil {
		return rspec.User{}, "", err
	}
	u := rspec.User{}
	home, login := "/", ""
	uid, isNumber := number(name)
	entry := find(passwd, name, 7)
	if entry == nil && isNumber {
		entry = findNumber(passwd, uid, 7)
	}
	switch {
	case entry != nil:
		if u.UID, isNumber = number(entry[2]); !isNumber {
			return u, "", errs.New(errs.InvalidArgument, "user %q: /etc/passwd of the image gives it the number %q", name, entry[2])
		}
		u.GID, _ = number(entry[3])
		login, home = entry[0], entry[5]
	case isNumber:
		u.UID = uid
		if uid == 0 {
			home = "/root"
		}
	default:
		return u, "", errs.New(errs.NotFound, "the image has no user %q: it is not in its /etc/passwd", name)
	}
	if grouped {
		if u.GID, err = groupID(groups, group); err != nil {
			return u, "", err
		}
	} else {
		u.AdditionalGids = memberships(groups, login, u.GID)
	}
	for _, g := range more {
		gid, err := groupID(groups, g)
		if err != nil {
			return u, "", err
		}
		if !slices.Contains(u.AdditionalGids, gid) {
			u.AdditionalGids = append(u.AdditionalGids, gid)
		}
	}
	return u, home, nil
}

// database splits a file of lines with colons. An image may have none.
func database(read Reader, name string) ([][]string, error) {
	data, err := read(name)
	if errors.Is(err, fs.ErrNotExist) || errs.Is(err, errs.Unimplemented) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out [][]string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			out = append(out, strings.Split(line, ":"))
		}
	}
	return out, nil
}

func find(all [][]string, name string, fields int) []string {
	for _, e := range all {
		if len(e) >= fields && e[0] == name {
			return e
		}
	}
	return nil
}

func findNumber(all [][]string, n uint32, fields int) []string {
	for _, e := range all {
		if len(e) < fields {
			continue
		}
		if m, ok := number(e[2]); ok && m == n {
			return e
		}
	}
	return nil
}

func groupID(groups [][]string, name string) (uint32, error) {
	if e := find(groups, name, 3); e != nil {
		if n, ok := number(e[2]); ok {
			return n, nil
		}
	}
	if n, ok := number(name); ok {
		return n, nil
	}
	return 0, errs.New(errs.NotFound, "the image has no group %q: it is not in its /etc/group", name)
}

// memberships are the groups that list the user.
func memberships(groups [][]string, login string, primary uint32) []uint32 {
	var out []uint32
	for _, e := range groups {
		if len(e) < 4 || login == "" || !slices.Contains(strings.Split(e[3], ","), login) {
			continue
		}
		if n, ok := number(e[2]); ok && n != primary && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}
