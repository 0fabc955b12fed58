package spec

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/base/id"
)

// standard are the mounts that every container has.
func (x *Flags) standard() ([]rspec.Mount, error) {
	shm, err := Bytes(x.ShmSize)
	if err != nil {
		return nil, fmt.Errorf("--shm-size: %w", err)
	}
	access := "ro"
	if x.Privileged {
		access = "rw"
	}
	out := []rspec.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
	if x.IPC == "host" {
		return append(out, rspec.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "rw"}}), nil
	}
	return append(out, rspec.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}}), nil
}

// asked are the mounts of -v, --mount and --tmpfs. Sources of -v are made if they
// are missing, as Docker does, and names are looked up.
func (x *Flags) asked(f Facts) ([]rspec.Mount, error) {
	var out []rspec.Mount
	for _, v := range x.Volumes {
		m, err := volume(v)
		if err != nil {
			return nil, err
		}
		if !filepath.IsAbs(m.Source) {
			if m.Source, err = f.Volume(m.Source, m.Destination); err != nil {
				return nil, fmt.Errorf("volume %q: %w", v, err)
			}
		} else if _, err := os.Stat(m.Source); errors.Is(err, os.ErrNotExist) {
			if err := f.MakeDir(m.Source); err != nil {
				return nil, fmt.Errorf("volume %q: %w", v, err)
			}
		}
		out = append(out, m)
	}
	for _, s := range x.MountSpecs {
		m, err := mountSpec(s)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	for _, s := range x.Tmpfs {
		at, options, _ := strings.Cut(s, ":")
		if !path.IsAbs(at) {
			return nil, invalid("tmpfs %q: its path must be absolute", s)
		}
		o := []string{"nosuid", "nodev", "noexec"}
		if options != "" {
			o = append(o, strings.Split(options, ",")...)
		}
		out = append(out, rspec.Mount{Destination: path.Clean(at), Type: "tmpfs", Source: "tmpfs", Options: o})
	}
	seen := map[string]bool{}
	for _, m := range out {
		if seen[m.Destination] {
			return nil, invalid("two mounts are asked for at %s", m.Destination)
		}
		seen[m.Destination] = true
	}
	return out, nil
}

var propagations = []string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}

// volume reads -v.
func volume(s string) (rspec.Mount, error) {
	part := strings.Split(s, ":")
	if len(part) < 2 || len(part) > 3 {
		return rspec.Mount{}, invalid("volume %q: write /host/path:/path[:options]", s)
	}
	src, at := part[0], part[1]
	if strings.HasPrefix(src, "./") || strings.HasPrefix(src, "../") || src == "." || src == ".." {
		abs, err := filepath.Abs(src)
		if err != nil {
			return rspec.Mount{}, err
		}
		src = abs
	}
	if !filepath.IsAbs(src) && id.Check("volume", src) != nil {
		return rspec.Mount{}, invalid("volume %q: %q is neither a path nor a name: write /host/path, ./path or a name", s, src)
	}
	if !path.IsAbs(at) || path.Clean(at) == "/" {
		return rspec.Mount{}, invalid("volume %q: its place in the container must be an absolute path below /", s)
	}
	m := rspec.Mount{Destination: path.Clean(at), Type: "bind", Source: src}
	access, propagation := "rw", "rprivate"
	if len(part) == 3 {
		for _, o := range strings.Split(part[2], ",") {
			switch {
			case o == "ro" || o == "rw":
				access = o
			case slices.Contains(propagations, o):
				propagation = o
			case o == "z" || o == "Z" || o == "cached" || o == "delegated" || o == "consistent" || o == "": // mean nothing here
			default:
				return m, invalid("volume %q: option %q is not known; there are ro, rw, %s", s, o, strings.Join(propagations, ", "))
			}
		}
	}
	m.Options = []string{"rbind", access, propagation}
	return m, nil
}

// mountSpec reads --mount.
func mountSpec(s string) (rspec.Mount, error) {
	kind, readonly, propagation := "bind", false, "rprivate"
	m := rspec.Mount{}
	var tmpfs []string
	for _, f := range strings.Split(s, ",") {
		k, v, _ := strings.Cut(f, "=")
		switch strings.ToLower(k) {
		case "type":
			kind = v
		case "source", "src":
			m.Source = v
		case "target", "destination", "dst":
			m.Destination = v
		case "readonly", "ro":
			readonly = v == "" || v == "true" || v == "1"
		case "bind-propagation":
			propagation = v
		case "tmpfs-size":
			n, err := Bytes(v)
			if err != nil {
				return m, err
			}
			tmpfs = append(tmpfs, fmt.Sprintf("size=%d", n))
		case "tmpfs-mode":
			tmpfs = append(tmpfs, "mode="+v)
		case "options": // ctr's
			tmpfs = append(tmpfs, strings.Split(v, ":")...)
		default:
			return m, invalid("mount %q: %q is not known", s, k)
		}
	}
	if !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" {
		return m, invalid("mount %q: target must be an absolute path below /", s)
	}
	m.Destination = path.Clean(m.Destination)
	access := "rw"
	if readonly {
		access = "ro"
	}
	switch kind {
	case "tmpfs":
		m.Type, m.Source, m.Options = "tmpfs", "tmpfs", append([]string{"nosuid", "nodev", "noexec", access}, tmpfs...)
	case "bind":
		if !filepath.IsAbs(m.Source) {
			return m, invalid("mount %q: source must be an absolute path", s)
		}
		if _, err := os.Stat(m.Source); err != nil {
			return m, invalid("mount %q: %w", s, err)
		}
		if !slices.Contains(propagations, propagation) {
			return m, invalid("mount %q: bind-propagation is one of %s", s, strings.Join(propagations, ", "))
		}
		m.Type, m.Options = "bind", append([]string{"rbind", access, propagation}, tmpfs...)
	default:
		return m, invalid("mount %q: type %q is not known; there are bind and tmpfs", s, kind)
	}
	return m, nil
}

// over puts mounts over the standard ones: who asks for a place gets it. Outer
// places come before inner ones.
func over(standard, asked []rspec.Mount) []rspec.Mount {
	out := slices.DeleteFunc(slices.Clone(standard), func(m rspec.Mount) bool {
		return slices.ContainsFunc(asked, func(a rspec.Mount) bool { return a.Destination == m.Destination })
	})
	asked = slices.Clone(asked)
	slices.SortStableFunc(asked, func(a, b rspec.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return append(out, asked...)
}
