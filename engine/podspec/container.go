package podspec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

// building is one spec in the making.
type building struct {
	host Host
	h    Handler
	pod  Pod
	c    Container
	sec  *cri.LinuxContainerSecurityContext
	s    *specs.Spec
}

// ForContainer is the spec of a container of a pod.
func ForContainer(host Host, h Handler, pod Pod, c Container) (*specs.Spec, error) {
	b := &building{host: host, h: h, pod: pod, c: c, sec: c.Config.GetLinux().GetSecurityContext()}
	var err error
	if b.s, err = h.base(); err != nil {
		return nil, err
	}
	if b.sec.GetPrivileged() && !pod.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		return nil, errs.New(errs.InvalidArgument, "security_context: a privileged container needs a pod that is privileged too")
	}
	// What comes later looks at what came before: seccomp at capabilities, mounts
	// at namespaces, CDI at everything.
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"process", b.process},
		{"capabilities", b.capabilities},
		{"namespaces", b.namespaces},
		{"seccomp", b.seccomp},
		{"apparmor", b.apparmor},
		{"selinux_options", b.selinux},
		{"mounts", b.mounts},
		{"devices", b.devices},
		{"resources", b.resources},
		{"cgroup_parent", b.cgroup},
		{"classes", b.classes},
		{"annotations", b.annotations},
		{"CDI devices", b.cdi},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return b.s, nil
}

// cgroup places the container below the pod.
func (b *building) cgroup() (err error) {
	b.s.Linux.CgroupsPath, err = CgroupPath(b.h.SystemdCgroup, b.pod.Config.GetLinux().GetCgroupParent(), b.c.ID)
	return err
}
