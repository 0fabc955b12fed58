package podspec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/seccomp"
	"github.com/berthd/berth/host/userdb"
)

// oomSandbox is the OOM score adjustment of a process that holds a pod: the kernel
// takes it after everything in the pod.
const oomSandbox = -998

// ForSandbox is the spec of the process that holds a pod: args run in a read-only
// root at "rootfs", in the pod's namespaces and the PID namespace that its containers
// share. Its cgroup is beside theirs.
func ForSandbox(host Host, h Handler, pod Pod, args []string) (*specs.Spec, error) {
	asked := pod.Config.GetLinux().GetSecurityContext()
	sec := &cri.LinuxContainerSecurityContext{
		NamespaceOptions: asked.GetNamespaceOptions(), SelinuxOptions: asked.GetSelinuxOptions(), ReadonlyRootfs: true,
		Seccomp: asked.GetSeccomp(), SeccompProfilePath: asked.GetSeccompProfilePath(), NoNewPrivs: true,
		MaskedPaths: MaskedDefault(), ReadonlyPaths: ReadonlyDefault(),
	}
	b := &building{host: host, h: h, pod: pod, sec: sec, c: Container{ID: pod.ID, Config: &cri.ContainerConfig{
		Linux: &cri.LinuxContainerConfig{SecurityContext: sec}, Command: args,
	}}}
	var err error
	if b.s, err = h.base(); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"process", b.process},
		{"security_context", b.sandboxUser},
		{"capabilities", b.capabilities},
		{"namespaces", b.sandboxNamespaces},
		{"seccomp", b.sandboxSeccomp},
		{"selinux_options", b.selinux},
		{"mounts", b.mounts},
		{"cgroup_parent", b.cgroup},
		{"annotations", b.sandboxAnnotations},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("pod's own process: %s: %w", step.what, err)
		}
	}
	b.oom(oomSandbox)
	shares := uint64(2) // the least there is (kernel: sched-design-CFS)
	b.s.Linux.Resources.CPU = &specs.LinuxCPU{Shares: &shares}
	return b.s, nil
}

func (b *building) sandboxUser() error {
	sec := b.pod.Config.GetLinux().GetSecurityContext()
	ask, err := UserAsk(&cri.ContainerConfig{Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
		RunAsUser: sec.GetRunAsUser(), RunAsGroup: sec.GetRunAsGroup(), SupplementalGroups: sec.GetSupplementalGroups(),
	}}}, b.c.Image)
	if err != nil {
		return err
	}
	for what, id := range map[string]int64{"run_as_user": sec.GetRunAsUser().GetValue(), "run_as_group": sec.GetRunAsGroup().GetValue()} {
		if id < 0 || id > userdb.MaxID {
			return errs.New(errs.InvalidArgument, "%s %d is not between 0 and %d", what, id, userdb.MaxID)
		}
	}
	u := &b.s.Process.User
	u.UID, u.GID, u.AdditionalGids = uint32(sec.GetRunAsUser().GetValue()), uint32(sec.GetRunAsGroup().GetValue()), ask.Groups
	return nil
}

// sandboxNamespaces makes the PID namespace, unless the pod uses the host's.
func (b *building) sandboxNamespaces() error {
	if err := b.joinPod(); err != nil {
		return err
	}
	if nsOptions(b.pod.Config).GetPid() != cri.NamespaceMode_NODE {
		b.addNamespace(specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	return nil
}

// sandboxSeccomp confines the process by the default profile whatever the pod asks
// for its containers, as long as it asks to be confined: it needs next to nothing.
func (b *building) sandboxSeccomp() (err error) {
	p, err := seccompOf(b.h.Settings, b.sec)
	if err != nil || p.kind == cri.SecurityProfile_Unconfined || !b.host.Seccomp {
		return err
	}
	b.s.Linux.Seccomp, err = seccomp.Default(b.s.Process.Capabilities.Bounding)
	return err
}

func (b *building) sandboxAnnotations() error {
	all, err := b.podAnnotations(typeSandbox)
	if err != nil {
		return err
	}
	b.annotate(all)
	return nil
}
