package spec

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

func invalid(format string, args ...any) error {
	return errs.New(errs.InvalidArgument, format, args...)
}

// Bytes reads a size as users write it: a number with b, k, m, g or t, as 512m.
func Bytes(s string) (int64, error) {
	low := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), "b"), "i")
	shift := 0
	if low != "" {
		if i := strings.IndexByte("kmgt", low[len(low)-1]); i >= 0 {
			shift, low = 10*(i+1), low[:len(low)-1]
		}
	}
	f, err := strconv.ParseFloat(low, 64)
	if err != nil || f < 0 || f*float64(int64(1)<<shift) > math.MaxInt64/2 {
		return 0, invalid("size %q: use a number with b, k, m or g, as 512m", s)
	}
	return int64(f * float64(int64(1)<<shift)), nil
}

// Environment merges the image's variables, the files' and the flags', later ones
// over earlier ones. A bare name takes the caller's value, or nothing.
func Environment(image []string, files, flags []string, terminal bool, lookup func(string) (string, bool)) ([]string, error) {
	var order []string
	value := map[string]string{}
	set := func(k, v string) {
		if _, there := value[k]; !there {
			order = append(order, k)
		}
		value[k] = v
	}
	set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	if terminal {
		set("TERM", "xterm")
	}
	for _, e := range image {
		k, v, _ := strings.Cut(e, "=")
		set(k, v)
	}
	user := func(e string) error {
		k, v, given := strings.Cut(e, "=")
		if k == "" {
			return invalid("environment variable %q has no name", e)
		}
		if !given {
			if v, given = lookup(k); !given {
				return nil
			}
		}
		set(k, v)
		return nil
	}
	var all []string
	for _, name := range files {
		lines, err := Lines(name)
		if err != nil {
			return nil, err
		}
		all = append(all, lines...)
	}
	for _, e := range append(all, flags...) {
		if err := user(e); err != nil {
			return nil, err
		}
	}
	out := make([]string, 0, len(order))
	for _, k := range order {
		out = append(out, k+"="+value[k])
	}
	return out, nil
}

// Lines reads variables or labels, one a line; lines that begin with # are comments.
func Lines(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	var out []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		line := strings.TrimLeft(s.Text(), " \t")
		if line != "" && line[0] != '#' {
			out = append(out, line)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return out, nil
}

// Pairs reads NAME=VALUE lists; what names them in errors.
func Pairs(what string, list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range list {
		k, v, _ := strings.Cut(s, "=")
		if k == "" {
			return nil, invalid("%s %q has no name: write NAME=VALUE", what, s)
		}
		out[k] = v
	}
	return out, nil
}

// limits are the names of setrlimit(2).
var limits = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

func ulimits(list []string) ([]rspec.POSIXRlimit, error) {
	var out []rspec.POSIXRlimit
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		soft, hard, two := strings.Cut(value, ":")
		if !two {
			hard = soft
		}
		lo, err1 := limit(soft)
		hi, err2 := limit(hard)
		if !ok || !slices.Contains(limits, name) || err1 != nil || err2 != nil {
			return nil, invalid("ulimit %q: write NAME=SOFT[:HARD] with one of %s", s, strings.Join(limits, " "))
		}
		if lo > hi {
			return nil, invalid("ulimit %q: the soft limit is above the hard one", s)
		}
		out = append(out, rspec.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: lo, Hard: hi})
	}
	return out, nil
}

func limit(s string) (uint64, error) {
	if s == "-1" || s == "unlimited" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// device reads --device and looks at the node.
func device(s string) ([]rspec.LinuxDevice, []rspec.LinuxDeviceCgroup, error) {
	from, rest, _ := strings.Cut(s, ":")
	to, mode := from, "rwm"
	if rest != "" {
		last := rest
		if i := strings.LastIndexByte(rest, ':'); i >= 0 {
			to, last = rest[:i], rest[i+1:]
		}
		if strings.HasPrefix(last, "/") {
			to = last
		} else {
			mode = last
		}
	}
	if strings.Trim(mode, "rwm") != "" || mode == "" || !filepath.IsAbs(to) || !filepath.IsAbs(from) {
		return nil, nil, invalid("device %q: write /dev/x[:/dev/y][:rwm]", s)
	}
	if st, err := os.Stat(from); err == nil && st.IsDir() {
		return deviceDir(from, to, mode)
	}
	d, c, err := node(from, to, mode)
	if err != nil {
		return nil, nil, err
	}
	return []rspec.LinuxDevice{d}, []rspec.LinuxDeviceCgroup{c}, nil
}

func node(from, to, mode string) (rspec.LinuxDevice, rspec.LinuxDeviceCgroup, error) {
	var st unix.Stat_t
	var d rspec.LinuxDevice
	if err := unix.Stat(from, &st); err != nil {
		return d, rspec.LinuxDeviceCgroup{}, invalid("device %s: %w", from, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, rspec.LinuxDeviceCgroup{}, invalid("device %s: it is no device node", from)
	}
	d.Path, d.Major, d.Minor = to, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	perm, uid, gid := os.FileMode(st.Mode&0o7777), st.Uid, st.Gid
	d.FileMode, d.UID, d.GID = &perm, &uid, &gid
	return d, rspec.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: mode}, nil
}

// deviceDir takes every device below a directory, as /dev/dri.
func deviceDir(from, to, mode string) (ds []rspec.LinuxDevice, cs []rspec.LinuxDeviceCgroup, err error) {
	err = filepath.WalkDir(from, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.Type()&os.ModeDevice == 0 {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		d, c, err := node(p, filepath.Join(to, rel), mode)
		ds, cs = append(ds, d), append(cs, c)
		return err
	})
	return ds, cs, err
}

// cgroupRule reads "c 1:3 rwm".
func cgroupRule(s string) (rspec.LinuxDeviceCgroup, error) {
	bad := invalid("device rule %q: write 'c MAJOR:MINOR rwm' with * for any", s)
	f := strings.Fields(s)
	if len(f) != 3 || !slices.Contains([]string{"a", "b", "c"}, f[0]) || strings.Trim(f[2], "rwm") != "" {
		return rspec.LinuxDeviceCgroup{}, bad
	}
	out := rspec.LinuxDeviceCgroup{Allow: true, Type: f[0], Access: f[2]}
	major, minor, ok := strings.Cut(f[1], ":")
	for _, n := range []struct {
		text string
		to   **int64
	}{{major, &out.Major}, {minor, &out.Minor}} {
		v := int64(-1)
		if n.text != "*" {
			p, err := strconv.ParseInt(n.text, 10, 32)
			if err != nil || !ok || p < 0 {
				return out, bad
			}
			v = p
		}
		*n.to = &v
	}
	return out, nil
}
