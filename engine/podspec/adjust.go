package podspec

import (
	"cmp"
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/base/errs"
)

// Clone copies a spec in depth.
func Clone(s *specs.Spec) (*specs.Spec, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	out := &specs.Spec{}
	return out, json.Unmarshal(text, out)
}

// Adjust changes a container's spec as NRI plugins want it. What the host cannot
// give is refused, or clamped where it would be for a config too.
func Adjust(host Host, h Handler, s *specs.Spec, a *api.ContainerAdjustment) error {
	if a == nil {
		return nil
	}
	b := &building{host: host, h: h, s: s}
	b.adjustProcess(a)
	b.adjustHooks(a.GetHooks())
	if err := b.adjustMounts(a.GetMounts()); err != nil {
		return err
	}
	if err := b.adjustLinux(a.GetLinux()); err != nil {
		return err
	}
	if len(a.GetCDIDevices()) == 0 {
		return nil
	}
	var names []string
	for _, d := range a.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	if !h.Settings.CDI || host.CDI == nil {
		return errs.New(errs.FailedPrecondition, "%s: CDI is disabled (enable_cdi)", strings.Join(names, ", "))
	}
	return host.CDI(s, h.Settings.CDIDirs, names)
}

func (b *building) adjustProcess(a *api.ContainerAdjustment) {
	p := b.s.Process
	if len(a.GetArgs()) > 0 {
		p.Args = slices.Clone(a.GetArgs())
	}
	for _, e := range a.GetEnv() {
		k, removal := api.IsMarkedForRemoval(e.GetKey())
		if removal {
			p.Env = slices.DeleteFunc(p.Env, func(v string) bool { n, _, _ := strings.Cut(v, "="); return n == k })
			continue
		}
		p.Env = setEnv(p.Env, k, e.GetValue())
	}
	for _, r := range a.GetRlimits() {
		p.Rlimits = slices.DeleteFunc(p.Rlimits, func(o specs.POSIXRlimit) bool { return o.Type == r.GetType() })
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: r.GetType(), Hard: r.GetHard(), Soft: r.GetSoft()})
	}
	b.s.Annotations = adjustMap(b.s.Annotations, a.GetAnnotations())
}

// adjustMap sets the keys of a map; those with a minus before them go first.
func adjustMap(have, more map[string]string) map[string]string {
	for _, k := range slices.Sorted(maps.Keys(more)) {
		n, removal := api.IsMarkedForRemoval(k)
		if removal {
			delete(have, n)
		}
	}
	for k, v := range more {
		if _, removal := api.IsMarkedForRemoval(k); removal {
			continue
		}
		if have == nil {
			have = map[string]string{}
		}
		have[k] = v
	}
	return have
}

func (b *building) adjustHooks(h *api.Hooks) {
	if h == nil {
		return
	}
	if b.s.Hooks == nil {
		b.s.Hooks = &specs.Hooks{}
	}
	add := func(to *[]specs.Hook, more []*api.Hook) {
		for _, m := range more {
			*to = append(*to, m.ToOCI())
		}
	}
	to := b.s.Hooks
	add(&to.Prestart, h.GetPrestart()) //nolint:staticcheck // deprecated, and still in the protocol
	add(&to.CreateRuntime, h.GetCreateRuntime())
	add(&to.CreateContainer, h.GetCreateContainer())
	add(&to.StartContainer, h.GetStartContainer())
	add(&to.Poststart, h.GetPoststart())
	add(&to.Poststop, h.GetPoststop())
}

func (b *building) adjustMounts(all []*api.Mount) error {
	for _, m := range all {
		dst, removal := api.IsMarkedForRemoval(m.GetDestination())
		if !path.IsAbs(dst) || strings.ContainsRune(dst, 0) {
			return errs.New(errs.InvalidArgument, "mount at %q: the path is not absolute", dst)
		}
		b.s.Mounts = slices.DeleteFunc(b.s.Mounts, func(o specs.Mount) bool { return path.Clean(o.Destination) == path.Clean(dst) })
		if removal {
			continue
		}
		b.s.Mounts = append(b.s.Mounts, specs.Mount{Destination: dst, Type: m.GetType(), Source: m.GetSource(), Options: slices.Clone(m.GetOptions())})
		for _, o := range m.GetOptions() {
			if o != "rshared" && o != "rslave" {
				continue
			}
			if slices.Index(rootPropagation, b.s.Linux.RootfsPropagation) < slices.Index(rootPropagation, o) {
				b.s.Linux.RootfsPropagation = o
			}
		}
	}
	if len(all) > 0 { // a mount comes before what is inside it
		slices.SortStableFunc(b.s.Mounts, func(x, y specs.Mount) int {
			return cmp.Compare(strings.Count(path.Clean(x.Destination), "/"), strings.Count(path.Clean(y.Destination), "/"))
		})
	}
	return nil
}

func (b *building) adjustLinux(a *api.LinuxContainerAdjustment) error {
	if a == nil {
		return nil
	}
	l := b.s.Linux
	for _, d := range a.GetDevices() {
		at, removal := api.IsMarkedForRemoval(d.GetPath())
		if removal {
			l.Devices = slices.DeleteFunc(l.Devices, func(o specs.LinuxDevice) bool { return o.Path == at })
			continue
		}
		dev := d.ToOCI()
		b.putDevice(dev)
		l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor, Access: d.AccessString()})
	}
	for _, n := range a.GetNamespaces() {
		typ, removal := api.IsMarkedForRemoval(n.GetType())
		l.Namespaces = slices.DeleteFunc(l.Namespaces, func(o specs.LinuxNamespace) bool { return string(o.Type) == typ })
		if !removal {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(typ), Path: n.GetPath()})
		}
	}
	l.Sysctl = adjustMap(l.Sysctl, a.GetSysctl())
	for name, d := range a.GetNetDevices() {
		if _, removal := api.IsMarkedForRemoval(name); removal {
			continue // a config has none
		}
		if l.NetDevices == nil {
			l.NetDevices = map[string]specs.LinuxNetDevice{}
		}
		l.NetDevices[name] = d.ToOCI()
	}
	if a.GetCgroupsPath() != "" {
		l.CgroupsPath = a.GetCgroupsPath()
	}
	if o := a.GetOomScoreAdj(); o != nil {
		b.oom(o.GetValue())
	}
	if p := a.GetIoPriority(); p != nil {
		b.s.Process.IOPriority = p.ToOCI()
	}
	if sch := a.GetScheduler(); sch != nil {
		b.s.Process.Scheduler = sch.ToOCI()
	}
	if p := a.GetMemoryPolicy(); p != nil {
		l.MemoryPolicy = p.ToOCI()
	}
	if p := a.GetSeccompPolicy(); p != nil {
		l.Seccomp = seccompPolicy(p)
	}
	b.adjustRDT(a.GetRdt())
	return b.adjustResources(a.GetResources())
}

func seccompPolicy(p *api.LinuxSeccomp) *specs.LinuxSeccomp {
	out := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(p.GetDefaultAction()), ListenerPath: p.GetListenerPath(), ListenerMetadata: p.GetListenerMetadata(),
		Syscalls: api.ToOCILinuxSyscalls(p.GetSyscalls()),
	}
	if e := p.GetDefaultErrno(); e != nil {
		n := uint(e.GetValue())
		out.DefaultErrnoRet = &n
	}
	for _, a := range p.GetArchitectures() {
		out.Architectures = append(out.Architectures, specs.Arch(a))
	}
	for _, f := range p.GetFlags() {
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(f))
	}
	return out
}

func (b *building) adjustRDT(r *api.LinuxRdt) {
	if r == nil {
		return
	}
	to := specs.LinuxIntelRdt{}
	if b.s.Linux.IntelRdt != nil && !r.GetRemove() {
		to = *b.s.Linux.IntelRdt
	}
	set := !r.GetRemove()
	if v := r.GetClosId(); v != nil {
		to.ClosID, set = v.GetValue(), true
	}
	if v := r.GetSchemata(); v != nil {
		to.Schemata, set = slices.Clone(v.GetValue()), true
	}
	if v := r.GetEnableMonitoring(); v != nil {
		to.EnableMonitoring, set = v.GetValue(), true
	}
	b.s.Linux.IntelRdt = nil
	if set {
		b.s.Linux.IntelRdt = &to
	}
}

func (b *building) adjustResources(r *api.LinuxResources) error {
	if r == nil {
		return nil
	}
	res, err := FromNRI(b.host, r)
	if err != nil {
		return err
	}
	Merge(b.s, res)
	b.s.Linux.Resources.Devices = append(b.s.Linux.Resources.Devices, res.Devices...)
	if c := r.GetRdtClass(); c != nil && c.GetValue() != "" {
		if err := b.setRDT(c.GetValue()); err != nil {
			return err
		}
	}
	if c := r.GetBlockioClass(); c != nil && c.GetValue() != "" {
		return b.setBlockIO(c.GetValue())
	}
	return nil
}

// FromNRI turns a plugin's limits into those of a spec. Swap that the host does not
// account cannot be limited, and is left out.
func FromNRI(host Host, r *api.LinuxResources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if r == nil {
		return out, nil
	}
	oci := r.ToOCI()
	*out = *oci
	if out.Memory != nil && !host.Swap {
		out.Memory.Swap = nil
	}
	if out.Memory != nil && *out.Memory == (specs.LinuxMemory{}) {
		out.Memory = nil
	}
	if out.CPU != nil && *out.CPU == (specs.LinuxCPU{}) {
		out.CPU = nil
	}
	if p := r.GetPids(); p != nil {
		limit := p.GetLimit()
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	if len(out.Unified) > 0 && !host.Cgroup2 {
		return nil, errs.New(errs.FailedPrecondition, "unified: the controllers of this host are not in the unified hierarchy")
	}
	return out, nil
}
