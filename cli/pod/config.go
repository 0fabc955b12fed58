package pod

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/spec"
)

// Labels by which Kubernetes' tools know pods and containers.
const (
	labelPodName      = "io.kubernetes.pod.name"
	labelPodNamespace = "io.kubernetes.pod.namespace"
	labelPodUID       = "io.kubernetes.pod.uid"
	labelContainer    = "io.kubernetes.container.name"
)

// annotationDir is where the pod's logs and volumes are.
const annotationDir = "berth.dev/dir"

// namespaces are the modes of a pod's namespaces.
func (m *manifest) namespaces() *cri.NamespaceOption {
	node := func(host bool, other cri.NamespaceMode) cri.NamespaceMode {
		if host {
			return cri.NamespaceMode_NODE
		}
		return other
	}
	pid := cri.NamespaceMode_CONTAINER
	if m.Spec.ShareProcessNamespace {
		pid = cri.NamespaceMode_POD
	}
	return &cri.NamespaceOption{
		Network: node(m.Spec.HostNetwork, cri.NamespaceMode_POD), Pid: node(m.Spec.HostPID, pid), Ipc: node(m.Spec.HostIPC, cri.NamespaceMode_POD),
	}
}

func seccompOf(all ...*seccompProfile) (*cri.SecurityProfile, error) {
	for _, p := range all {
		if p == nil {
			continue
		}
		switch p.Type {
		case "RuntimeDefault":
		case "Unconfined":
			return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
		case "Localhost":
			return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: p.LocalhostProfile}, nil
		default:
			return nil, errs.New(errs.InvalidArgument, "seccompProfile type %q is not known", p.Type)
		}
		break
	}
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
}

func number(n *int64) *cri.Int64Value {
	if n == nil {
		return nil
	}
	return &cri.Int64Value{Value: *n}
}

// sandbox is the pod in the CRI's words.
func (m *manifest) sandbox(dir string) (*cri.PodSandboxConfig, error) {
	md, s := m.Metadata, m.Spec
	profile, err := seccompOf(s.SecurityContext.SeccompProfile)
	if err != nil {
		return nil, err
	}
	c := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: md.Name, Namespace: md.Namespace, Uid: md.UID},
		Hostname: cmp.Or(s.Hostname, md.Name), LogDirectory: filepath.Join(dir, "logs"),
		Labels: map[string]string{labelPodName: md.Name, labelPodNamespace: md.Namespace, labelPodUID: md.UID}, Annotations: map[string]string{annotationDir: dir},
		Linux: &cri.LinuxPodSandboxConfig{Sysctls: map[string]string{}, SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: m.namespaces(), RunAsUser: number(s.SecurityContext.RunAsUser), RunAsGroup: number(s.SecurityContext.RunAsGroup),
			SupplementalGroups: m.groups(), Seccomp: profile,
		}},
	}
	if s.HostNetwork {
		if c.Hostname, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	for k, v := range md.Labels {
		c.Labels[k] = v
	}
	for k, v := range md.Annotations {
		c.Annotations[k] = v
	}
	for _, v := range s.SecurityContext.Sysctls {
		c.Linux.Sysctls[v.Name] = v.Value
	}
	for _, k := range m.all() {
		for _, p := range k.Ports {
			proto, known := cri.Protocol_value[cmp.Or(strings.ToUpper(p.Protocol), "TCP")]
			if !known {
				return nil, errs.New(errs.InvalidArgument, "container %s: port protocol %q is not known", k.Name, p.Protocol)
			}
			c.PortMappings = append(c.PortMappings, &cri.PortMapping{Protocol: cri.Protocol(proto), ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP})
		}
		c.Linux.SecurityContext.Privileged = c.Linux.SecurityContext.Privileged || k.SecurityContext.Privileged
	}
	if d := s.DNSConfig; d != nil {
		c.DnsConfig = &cri.DNSConfig{Servers: d.Nameservers, Searches: d.Searches}
		for _, o := range d.Options {
			text := o.Name
			if o.Value != nil {
				text += ":" + *o.Value
			}
			c.DnsConfig.Options = append(c.DnsConfig.Options, text)
		}
	}
	var hosts []string
	for _, h := range s.HostAliases {
		for _, n := range h.Hostnames {
			hosts = append(hosts, n+":"+h.IP)
		}
	}
	if hosts != nil {
		c.Annotations["berth.dev/hosts"] = strings.Join(hosts, ",")
	}
	return c, nil
}

func (m *manifest) groups() []int64 {
	out := slices.Clone(m.Spec.SecurityContext.SupplementalGroups)
	if g := m.Spec.SecurityContext.FSGroup; g != nil {
		out = append(out, *g)
	}
	return out
}

// facts is what is known of a pod only when it runs.
type facts struct {
	ip, dir string
	image   string // the reference that was pulled
}

// container is one container in the CRI's words.
func (m *manifest) container(k ctrSpec, f facts, attempt uint32) (*cri.ContainerConfig, error) {
	c := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: k.Name, Attempt: attempt}, Image: &cri.ImageSpec{Image: f.image, UserSpecifiedImage: k.Image},
		WorkingDir: k.WorkingDir, Stdin: k.Stdin, StdinOnce: k.StdinOnce, Tty: k.TTY, LogPath: filepath.Join(k.Name, fmt.Sprintf("%d.log", attempt)),
		Labels: map[string]string{labelContainer: k.Name, labelPodName: m.Metadata.Name, labelPodNamespace: m.Metadata.Namespace, labelPodUID: m.Metadata.UID},
		Linux:  &cri.LinuxContainerConfig{},
	}
	env := map[string]string{}
	for _, e := range k.Env {
		v := expand(e.Value, env)
		if e.ValueFrom != nil {
			var err error
			if v, err = m.field(e.ValueFrom.FieldRef.FieldPath, f); err != nil {
				return nil, fmt.Errorf("container %s: env %s: %w", k.Name, e.Name, err)
			}
		}
		env[e.Name] = v
		c.Envs = append(c.Envs, &cri.KeyValue{Key: e.Name, Value: []byte(v)})
	}
	for _, s := range k.Command {
		c.Command = append(c.Command, expand(s, env))
	}
	for _, s := range k.Args {
		c.Args = append(c.Args, expand(s, env))
	}
	var err error
	if c.Mounts, err = m.mounts(k, f.dir); err != nil {
		return nil, err
	}
	if c.Linux.Resources, err = k.limits(); err != nil {
		return nil, fmt.Errorf("container %s: %w", k.Name, err)
	}
	c.Linux.SecurityContext, err = m.security(k)
	return c, err
}

func (m *manifest) security(k ctrSpec) (*cri.LinuxContainerSecurityContext, error) {
	own, pod := k.SecurityContext, m.Spec.SecurityContext
	profile, err := seccompOf(own.SeccompProfile, pod.SeccompProfile)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", k.Name, err)
	}
	s := &cri.LinuxContainerSecurityContext{
		Privileged: own.Privileged, ReadonlyRootfs: own.ReadOnlyRootFilesystem, NamespaceOptions: m.namespaces(), SupplementalGroups: m.groups(),
		NoNewPrivs: own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation, Seccomp: profile,
		RunAsUser: number(cmp.Or(own.RunAsUser, pod.RunAsUser)), RunAsGroup: number(cmp.Or(own.RunAsGroup, pod.RunAsGroup)),
		Capabilities: &cri.Capability{AddCapabilities: own.Capabilities.Add, DropCapabilities: own.Capabilities.Drop},
	}
	if s.RunAsUser == nil {
		s.RunAsGroup = nil // the image's user has its own
	}
	if own.Privileged {
		s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	} else {
		s.MaskedPaths, s.ReadonlyPaths = spec.Hidden, spec.Fixed
	}
	return s, nil
}

// Kubernetes' rules for CPU: shares of 1024 for a processor, periods of 100 ms.
const (
	sharesOfCPU = 1024
	minShares   = 2
	period      = 100_000 // µs
)

func (k ctrSpec) limits() (*cri.LinuxContainerResources, error) {
	r := &cri.LinuxContainerResources{CpuShares: minShares}
	limits, requests := k.Resources.Limits, k.Resources.Requests
	if q := limits["memory"]; q != "" {
		n, err := q.number()
		if err != nil {
			return nil, err
		}
		r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = int64(n), int64(n)
	}
	if q := limits["cpu"]; q != "" {
		n, err := q.number()
		if err != nil {
			return nil, err
		}
		r.CpuPeriod, r.CpuQuota = period, int64(n*period)
	}
	if q := cmp.Or(requests["cpu"], limits["cpu"]); q != "" {
		n, err := q.number()
		if err != nil {
			return nil, err
		}
		r.CpuShares = max(minShares, int64(n*sharesOfCPU))
	}
	return r, nil
}

var variable = regexp.MustCompile(`\$\$|\$\([A-Za-z_.-][A-Za-z0-9_.-]*\)`)

// expand puts variables in, as Kubernetes does: $(NAME) of those that are known
// before, and $$ for a dollar.
func expand(s string, env map[string]string) string {
	return variable.ReplaceAllStringFunc(s, func(w string) string {
		if w == "$$" {
			return "$"
		}
		if v, there := env[w[2:len(w)-1]]; there {
			return v
		}
		return w
	})
}

var keyed = regexp.MustCompile(`^metadata\.(labels|annotations)\['([^']+)'\]$`)

// field is the downward API's.
func (m *manifest) field(path string, f facts) (string, error) {
	switch path {
	case "metadata.name":
		return m.Metadata.Name, nil
	case "metadata.namespace":
		return m.Metadata.Namespace, nil
	case "metadata.uid":
		return m.Metadata.UID, nil
	case "status.podIP", "status.podIPs":
		return f.ip, nil
	case "spec.nodeName":
		return os.Hostname()
	case "spec.serviceAccountName":
		return cmp.Or(m.Spec.ServiceAccount, "default"), nil
	}
	if k := keyed.FindStringSubmatch(path); k != nil {
		if k[1] == "labels" {
			return m.Metadata.Labels[k[2]], nil
		}
		return m.Metadata.Annotations[k[2]], nil
	}
	return "", errs.New(errs.InvalidArgument, "fieldPath %q is not known here", path)
}

// mounts makes the container's mounts; the volumes are there.
func (m *manifest) mounts(k ctrSpec, dir string) ([]*cri.Mount, error) {
	var out []*cri.Mount
	for _, v := range k.VolumeMounts {
		i := slices.IndexFunc(m.Spec.Volumes, func(s volumeSpec) bool { return s.Name == v.Name })
		src := filepath.Join(dir, "volumes", v.Name)
		if h := m.Spec.Volumes[i].HostPath; h != nil {
			src = h.Path
		}
		if v.SubPath != "" {
			if !filepath.IsLocal(v.SubPath) {
				return nil, errs.New(errs.InvalidArgument, "container %s: subPath %q leaves its volume", k.Name, v.SubPath)
			}
			src = filepath.Join(src, v.SubPath)
			if err := os.MkdirAll(src, 0o755); err != nil {
				return nil, err
			}
		}
		p, known := map[string]cri.MountPropagation{
			"": cri.MountPropagation_PROPAGATION_PRIVATE, "None": cri.MountPropagation_PROPAGATION_PRIVATE,
			"HostToContainer": cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, "Bidirectional": cri.MountPropagation_PROPAGATION_BIDIRECTIONAL,
		}[v.MountPropagation]
		if !known {
			return nil, errs.New(errs.InvalidArgument, "container %s: mountPropagation %q is not known", k.Name, v.MountPropagation)
		}
		out = append(out, &cri.Mount{HostPath: src, ContainerPath: v.MountPath, Readonly: v.ReadOnly, Propagation: p, RecursiveReadOnly: v.RecursiveReadOnly == "Enabled"})
	}
	return out, nil
}

// makeVolumes makes the pod's directory with its volumes.
func (m *manifest) makeVolumes(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "logs"), 0o755); err != nil {
		return err
	}
	for _, v := range m.Spec.Volumes {
		if v.EmptyDir != nil {
			if v.EmptyDir.Medium != "" {
				return errs.New(errs.Unimplemented, "volume %s: an emptyDir of medium %s is not made here; leave medium out", v.Name, v.EmptyDir.Medium)
			}
			at := filepath.Join(dir, "volumes", v.Name)
			if err := os.MkdirAll(at, 0o777); err != nil {
				return err
			}
			if err := os.Chmod(at, 0o777); err != nil {
				return err
			}
			if g := m.Spec.SecurityContext.FSGroup; g != nil {
				if err := os.Chown(at, -1, int(*g)); err != nil {
					return err
				}
			}
			continue
		}
		if err := checkHostPath(v.HostPath.Path, v.HostPath.Type); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// checkHostPath does what a hostPath's type says.
func checkHostPath(path, kind string) error {
	if !filepath.IsAbs(path) {
		return errs.New(errs.InvalidArgument, "hostPath %q must be absolute", path)
	}
	switch kind {
	case "":
		return nil
	case "DirectoryOrCreate":
		return os.MkdirAll(path, 0o755)
	case "FileOrCreate":
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	ok, known := map[string]bool{
		"Directory": st.IsDir(), "File": st.Mode().IsRegular(), "Socket": st.Mode()&os.ModeSocket != 0,
		"CharDevice": st.Mode()&os.ModeCharDevice != 0, "BlockDevice": st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0,
	}[kind]
	if !known {
		return errs.New(errs.InvalidArgument, "hostPath type %q is not known", kind)
	}
	if !ok {
		return errs.New(errs.FailedPrecondition, "hostPath %s is no %s", path, kind)
	}
	return nil
}
