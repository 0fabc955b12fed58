package podspec

import (
	"cmp"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

// mounts puts together what the container sees: the base file systems, what the pod
// gives, the image's volumes and the config's mounts. A mount of the config takes
// the place of any other at the same path; a mount comes before what is inside it.
func (b *building) mounts() error {
	asked, err := b.askedMounts()
	if err != nil {
		return err
	}
	all := append(asked, b.podMounts(asked)...)
	taken := map[string]bool{}
	for _, m := range all {
		taken[m.Destination] = true
	}
	for p, dir := range b.c.Volumes {
		dst := path.Join("/", p)
		if within(dst, "/proc") || dst == "/sys" || dst == "/dev" || dst == "/" {
			// It would take the place of what the kernel tells, and of where labels are
			// written to (CVE-2019-16884).
			return errs.New(errs.InvalidArgument, "the image defines a volume at %s: nothing can be mounted there", dst)
		}
		if !taken[dst] && !within(dst, "/sys") { // images for systemd have one at /sys/fs/cgroup; the real one stays
			all = append(all, bind(dst, dir, "rw"))
		}
	}
	slices.SortStableFunc(all, func(x, y specs.Mount) int {
		if d := strings.Count(x.Destination, "/") - strings.Count(y.Destination, "/"); d != 0 {
			return d
		}
		return cmp.Compare(x.Destination, y.Destination)
	})
	base := slices.DeleteFunc(b.baseMounts(), func(m specs.Mount) bool { return taken[path.Clean(m.Destination)] })
	b.s.Mounts = append(base, all...)
	b.paths()
	return nil
}

// within reports whether a clean path is dir or below it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func bind(dst, src string, options ...string) specs.Mount {
	return specs.Mount{Destination: dst, Type: "bind", Source: src, Options: append([]string{"rbind", "rprivate"}, options...)}
}

// baseMounts are the base spec's, fitted to the namespaces: a file system that
// belongs to a namespace can be mounted only by that namespace's own root.
func (b *building) baseMounts() []specs.Mount {
	out := slices.Clone(b.s.Mounts)
	if b.mapped() && b.pod.IPC == "" && !b.host.IsDir("/dev/mqueue") {
		out = slices.DeleteFunc(out, func(m specs.Mount) bool { return m.Type == "mqueue" })
	}
	for i, m := range out {
		switch {
		case m.Type == "sysfs" && b.mapped() && b.pod.Net == "":
			out[i] = specs.Mount{Destination: m.Destination, Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
		case m.Type == "mqueue" && b.mapped() && b.pod.IPC == "":
			out[i] = specs.Mount{Destination: m.Destination, Type: "bind", Source: "/dev/mqueue", Options: []string{"rbind", "nosuid", "noexec", "nodev"}}
		case m.Type == "sysfs" && b.sec.GetPrivileged(), m.Type == "cgroup" && (b.sec.GetPrivileged() || b.h.CgroupWritable && b.host.Cgroup2):
			out[i].Options = append(slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" }), "rw")
		}
	}
	return out
}

// podMounts are the files that a pod gives to each of its containers, unless the
// config mounts its own there.
func (b *building) podMounts(asked []specs.Mount) []specs.Mount {
	var out []specs.Mount
	mode := "rw"
	if b.sec.GetReadonlyRootfs() {
		mode = "ro"
	}
	for _, f := range []struct{ dst, src, mode string }{
		{"/dev/shm", b.pod.Shm, "rw"}, {"/etc/hostname", b.pod.Hostname, mode}, {"/etc/hosts", b.pod.Hosts, mode}, {"/etc/resolv.conf", b.pod.ResolvConf, mode},
	} {
		if f.src == "" || slices.ContainsFunc(asked, func(m specs.Mount) bool { return m.Destination == f.dst }) {
			continue
		}
		m := bind(f.dst, f.src, f.mode)
		if f.dst == "/dev/shm" {
			m.Options = append(m.Options, "nosuid", "nodev", "noexec")
		}
		out = append(out, m)
	}
	return out
}

func (b *building) askedMounts() ([]specs.Mount, error) {
	var out []specs.Mount
	for _, m := range b.c.Config.GetMounts() {
		s, err := b.askedMount(m)
		if err != nil {
			return nil, errs.New(kindOf(err), "mount at %q: %w", m.GetContainerPath(), err)
		}
		// The last one at a path is the one that is seen.
		out = slices.DeleteFunc(out, func(o specs.Mount) bool { return o.Destination == s.Destination })
		out = append(out, s)
	}
	return out, nil
}

func (b *building) askedMount(m *cri.Mount) (specs.Mount, error) {
	var none specs.Mount
	if m.GetContainerPath() == "" || strings.ContainsRune(m.GetContainerPath(), 0) {
		return none, errs.New(errs.InvalidArgument, "container_path is not valid")
	}
	dst := path.Join("/", m.GetContainerPath())
	if dst == "/" || dst == "/proc" && !b.sec.GetPrivileged() {
		return none, errs.New(errs.InvalidArgument, "nothing can be mounted there")
	}
	src := b.c.Sources[m.GetContainerPath()]
	if m.GetImage().GetImage() != "" {
		if src == "" {
			return none, errs.New(errs.InvalidArgument, "image %s is not mounted", m.GetImage().GetImage())
		}
		if !m.GetReadonly() {
			return none, errs.New(errs.InvalidArgument, "an image mount must be readonly")
		}
	}
	src = or(src, m.GetHostPath())
	if !filepath.IsAbs(src) || strings.ContainsRune(src, 0) {
		return none, errs.New(errs.InvalidArgument, "host_path %q is not absolute", src)
	}
	out := specs.Mount{Destination: dst, Type: "bind", Source: src, Options: []string{"rbind"}}
	prop, err := b.propagation(m, src)
	if err != nil {
		return none, err
	}
	mode, err := b.mode(m)
	if err != nil {
		return none, err
	}
	out.Options = append(out.Options, prop, mode)
	if out.Options, err = moreOptions(out.Options, m.GetMountOptions()); err != nil {
		return none, err
	}
	if len(m.GetUidMappings())+len(m.GetGidMappings()) > 0 {
		if !b.h.IDMap {
			return none, errs.New(errs.FailedPrecondition, "the runtime cannot map the ids of mounts")
		}
		out.UIDMappings, out.GIDMappings = idMappings(m.GetUidMappings()), idMappings(m.GetGidMappings())
	}
	return out, nil
}

// mode is ro, rro or rw.
func (b *building) mode(m *cri.Mount) (string, error) {
	switch {
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return "", errs.New(errs.InvalidArgument, "recursive_read_only needs readonly")
	case m.GetRecursiveReadOnly() && m.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE:
		return "", errs.New(errs.InvalidArgument, "recursive_read_only needs private propagation")
	case m.GetRecursiveReadOnly() && !b.h.RecursiveReadOnly:
		return "", errs.New(errs.FailedPrecondition, "recursive_read_only: the runtime or the kernel cannot do it")
	case m.GetRecursiveReadOnly():
		return "rro", nil
	case m.GetReadonly():
		return "ro", nil
	}
	return "rw", nil
}

// Propagation of the root file system, from least to most.
var rootPropagation = []string{"", "private", "rprivate", "slave", "rslave", "shared", "rshared"}

// propagation is how mounts spread between the host and the container. The mount of
// the host must allow it, and so must the container's root.
func (b *building) propagation(m *cri.Mount, src string) (string, error) {
	prop := "rprivate"
	switch m.GetPropagation() {
	case cri.MountPropagation_PROPAGATION_PRIVATE:
		return prop, nil
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
	default:
		return "", errs.New(errs.InvalidArgument, "propagation %d is not known", m.GetPropagation())
	}
	host, err := b.host.Propagation(src)
	if err != nil {
		return "", errs.New(errs.InvalidArgument, "propagation: %w", err)
	}
	if m.GetPropagation() == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		if prop = "rshared"; !host.Shared {
			return "", errs.New(errs.FailedPrecondition, "%s is on %s, which is not a shared mount (mount --make-rshared %s)", src, host.Mount, host.Mount)
		}
	} else if prop = "rslave"; !host.Shared && !host.Slave {
		return "", errs.New(errs.FailedPrecondition, "%s is on %s, which is neither a shared nor a slave mount (mount --make-rshared %s)", src, host.Mount, host.Mount)
	}
	if slices.Index(rootPropagation, b.s.Linux.RootfsPropagation) < slices.Index(rootPropagation, prop) {
		b.s.Linux.RootfsPropagation = prop
	}
	return prop, nil
}

// mountFlags are the options that a config may add to a bind mount; each takes the
// place of its opposite.
var mountFlags = map[string]string{
	"noexec": "exec", "exec": "noexec", "nosuid": "suid", "suid": "nosuid", "nodev": "dev", "dev": "nodev",
	"noatime": "atime", "atime": "noatime", "nodiratime": "diratime", "diratime": "nodiratime", "relatime": "norelatime", "norelatime": "relatime",
	"strictatime": "nostrictatime", "nostrictatime": "strictatime", "nosymfollow": "symfollow", "symfollow": "nosymfollow",
}

func moreOptions(have, more []string) ([]string, error) {
	for _, o := range more {
		not, ok := mountFlags[o]
		if !ok {
			return nil, errs.New(errs.InvalidArgument, "mount option %q cannot be set: only flags such as noexec, nodev and nosuid can", o)
		}
		have = slices.DeleteFunc(have, func(h string) bool { return h == o || h == not })
		have = append(have, o)
	}
	return have, nil
}

// paths hides the parts of /proc and /sys that tell of the host. The config's lists
// count if it has a security context, empty ones too: that is how CRI says "unmasked".
func (b *building) paths() {
	l := b.s.Linux
	switch {
	case b.sec.GetPrivileged():
		l.MaskedPaths, l.ReadonlyPaths = nil, nil
	case b.sec != nil && !b.h.Settings.DisableProcMount:
		l.MaskedPaths, l.ReadonlyPaths = b.sec.GetMaskedPaths(), b.sec.GetReadonlyPaths()
	case b.h.BaseSpec == nil || len(l.MaskedPaths)+len(l.ReadonlyPaths) == 0:
		l.MaskedPaths, l.ReadonlyPaths = MaskedDefault(), ReadonlyDefault()
	}
}
