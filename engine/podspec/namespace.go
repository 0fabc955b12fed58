package podspec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

// Mapping says which ids of the host a pod's ids are.
type Mapping struct {
	uids, gids []specs.LinuxIDMapping
}

// UIDs is the mapping of user ids: one range.
func (m *Mapping) UIDs() []specs.LinuxIDMapping { return m.uids }

// GIDs is the mapping of group ids: one range.
func (m *Mapping) GIDs() []specs.LinuxIDMapping { return m.gids }

// UserNamespace is what a pod asks for as its user namespace; nil is the host's.
func UserNamespace(c *cri.PodSandboxConfig) (*Mapping, error) {
	return userNamespace(c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions())
}

func userNamespace(o *cri.UserNamespace) (*Mapping, error) {
	if o == nil {
		return nil, nil
	}
	switch o.GetMode() {
	case cri.NamespaceMode_NODE:
		if len(o.GetUids())+len(o.GetGids()) > 0 {
			return nil, errs.New(errs.InvalidArgument, "userns_options: mode NODE takes no mappings")
		}
		return nil, nil
	case cri.NamespaceMode_POD:
	default:
		return nil, errs.New(errs.InvalidArgument, "userns_options: mode %s is not one of POD and NODE", o.GetMode())
	}
	u, err := oneMapping("uids", o.GetUids())
	if err != nil {
		return nil, err
	}
	g, err := oneMapping("gids", o.GetGids())
	if err != nil {
		return nil, err
	}
	if u[0].Size != g[0].Size {
		return nil, errs.New(errs.InvalidArgument, "userns_options: %d user ids are mapped and %d group ids: they must be as many", u[0].Size, g[0].Size)
	}
	return &Mapping{u, g}, nil
}

// oneMapping checks that there is one range, from id 0 of the pod on: without a root
// nothing can be set up in the namespace.
func oneMapping(what string, all []*cri.IDMapping) ([]specs.LinuxIDMapping, error) {
	if len(all) != 1 {
		return nil, errs.New(errs.InvalidArgument, "userns_options: %s has %d mappings, there must be one", what, len(all))
	}
	m := all[0]
	switch {
	case m.GetContainerId() != 0:
		return nil, errs.New(errs.InvalidArgument, "userns_options: %s maps ids from %d on: 0 must be mapped", what, m.GetContainerId())
	case m.GetLength() == 0:
		return nil, errs.New(errs.InvalidArgument, "userns_options: %s maps no id", what)
	case uint64(m.GetHostId())+uint64(m.GetLength()) > 1<<32-1:
		return nil, errs.New(errs.InvalidArgument, "userns_options: %s maps %d ids from %d of the host on: there are not so many", what, m.GetLength(), m.GetHostId())
	}
	return idMappings(all), nil
}

func idMappings(all []*cri.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range all {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

func nsOptions(c *cri.PodSandboxConfig) *cri.NamespaceOption {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func hostNetwork(c *cri.PodSandboxConfig) bool {
	return nsOptions(c).GetNetwork() == cri.NamespaceMode_NODE
}

// namespaces joins the pod's and adds the container's own.
func (b *building) namespaces() error {
	if err := b.joinPod(); err != nil {
		return err
	}
	mode := b.sec.GetNamespaceOptions().GetPid()
	if b.sec.GetNamespaceOptions() == nil {
		mode = nsOptions(b.pod.Config).GetPid()
	}
	pid := specs.LinuxNamespace{Type: specs.PIDNamespace}
	switch mode {
	case cri.NamespaceMode_POD:
		if b.pod.InfraPID != 0 {
			pid.Path = fmt.Sprintf("/proc/%d/ns/pid", b.pod.InfraPID)
		}
		b.addNamespace(pid)
	case cri.NamespaceMode_CONTAINER:
		b.addNamespace(pid)
	case cri.NamespaceMode_TARGET:
		if b.c.TargetPID == 0 {
			return errs.New(errs.InvalidArgument, "target container %q does not run", b.sec.GetNamespaceOptions().GetTargetId())
		}
		pid.Path = fmt.Sprintf("/proc/%d/ns/pid", b.c.TargetPID)
		b.addNamespace(pid)
	case cri.NamespaceMode_NODE:
	default:
		return errs.New(errs.InvalidArgument, "pid mode %d is not known", mode)
	}
	return nil
}

func (b *building) addNamespace(n specs.LinuxNamespace) {
	b.s.Linux.Namespaces = append(b.s.Linux.Namespaces, n)
}

// joinPod joins what the pod has pinned; a mount namespace is the container's own.
func (b *building) joinPod() error {
	b.addNamespace(specs.LinuxNamespace{Type: specs.MountNamespace})
	for _, n := range []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: b.pod.Net}, {Type: specs.IPCNamespace, Path: b.pod.IPC}, {Type: specs.UTSNamespace, Path: b.pod.UTS},
	} {
		if n.Path != "" {
			b.addNamespace(n)
		}
	}
	if b.host.Cgroup2 && !b.sec.GetPrivileged() {
		b.addNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	m, err := UserNamespace(b.pod.Config)
	if err != nil {
		return err
	}
	if own, err := userNamespace(b.sec.GetNamespaceOptions().GetUsernsOptions()); err != nil {
		return err
	} else if own != nil && (m == nil || own.uids[0] != m.uids[0] || own.gids[0] != m.gids[0]) {
		return errs.New(errs.InvalidArgument, "userns_options of the container are not those of its pod")
	}
	if m != nil {
		b.addNamespace(specs.LinuxNamespace{Type: specs.UserNamespace, Path: b.pod.User})
		b.s.Linux.UIDMappings, b.s.Linux.GIDMappings = m.uids, m.gids
	}
	return nil
}

// mapped reports whether the container is in a user namespace of its own.
func (b *building) mapped() bool { return len(b.s.Linux.UIDMappings) > 0 }
