package nri

import (
	"maps"
	"slices"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/berthd/berth/base/errs"
)

// merger makes one adjustment out of those of all plugins, and one update for each
// of the other containers. Two plugins that set the same thing are in conflict,
// unless the second removes it first.
type merger struct {
	id       string // of the container that is made
	adjusted *api.ContainerAdjustment
	touched  bool
	owners   *api.OwningPlugins
	others   map[string]*api.ContainerUpdate
	order    []string // of others
}

func newMerger(id string) *merger {
	return &merger{
		id: id, owners: &api.OwningPlugins{Owners: map[string]*api.FieldOwners{}}, others: map[string]*api.ContainerUpdate{},
		adjusted: &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{}}},
	}
}

// result is the adjustment, or nil if there is none.
func (m *merger) result() *api.ContainerAdjustment {
	if !m.touched {
		return nil
	}
	return m.adjusted
}

// updates are those of other containers, in the order in which they were asked for.
func (m *merger) updates() []*api.ContainerUpdate {
	var out []*api.ContainerUpdate
	for _, id := range m.order {
		if u := m.others[id]; u != nil {
			out = append(out, u)
		}
	}
	return out
}

// takeUpdate takes out the update of one container.
func (m *merger) takeUpdate(id string) *api.ContainerUpdate {
	u := m.others[id]
	delete(m.others, id)
	return u
}

// claim notes who sets a field, or an entry of it, of a container.
func (m *merger) claim(id string, f api.Field, entry, plugin string) error {
	o := m.of(id)
	if entry == "" {
		if other := o.Simple[f.Key()]; other != "" && other != plugin {
			return errs.New(errs.FailedPrecondition, "plugin %s has set %s of container %s already", other, f, id)
		}
		o.Simple[f.Key()] = plugin
		return nil
	}
	c := o.Compound[f.Key()]
	if c == nil {
		c = &api.CompoundFieldOwners{Owners: map[string]string{}}
		o.Compound[f.Key()] = c
	}
	if other := c.Owners[entry]; other != "" && other != plugin {
		return errs.New(errs.FailedPrecondition, "plugin %s has set %s %q of container %s already", other, f, entry, id)
	}
	c.Owners[entry] = plugin
	return nil
}

// release forgets who set an entry: it is being removed.
func (m *merger) release(id string, f api.Field, entry string) {
	o := m.of(id)
	if entry == "" {
		delete(o.Simple, f.Key())
	} else if c := o.Compound[f.Key()]; c != nil {
		delete(c.Owners, entry)
	}
}

func (m *merger) of(id string) *api.FieldOwners {
	o := m.owners.Owners[id]
	if o == nil {
		o = &api.FieldOwners{Simple: map[int32]string{}, Compound: map[int32]*api.CompoundFieldOwners{}}
		m.owners.Owners[id] = o
	}
	return o
}

// adjust adds one plugin's adjustment; it reports whether there was one.
func (m *merger) adjust(a *api.ContainerAdjustment, plugin string) (bool, error) {
	if a == nil || proto.Size(a) == 0 {
		return false, nil
	}
	m.touched = true
	to := m.adjusted
	var err error
	if to.Annotations, err = m.keys(api.Field_Annotations, to.Annotations, a.Annotations, plugin); err != nil {
		return true, err
	}
	if to.Mounts, err = entries(m, api.Field_Mounts, to.Mounts, a.Mounts, plugin, (*api.Mount).GetDestination); err != nil {
		return true, err
	}
	if to.Env, err = entries(m, api.Field_Env, to.Env, a.Env, plugin, (*api.KeyValue).GetKey); err != nil {
		return true, err
	}
	if to.Rlimits, err = entries(m, api.Field_Rlimits, to.Rlimits, a.Rlimits, plugin, (*api.POSIXRlimit).GetType); err != nil {
		return true, err
	}
	if to.CDIDevices, err = entries(m, api.Field_CdiDevices, to.CDIDevices, a.CDIDevices, plugin, (*api.CDIDevice).GetName); err != nil {
		return true, err
	}
	if err := m.args(a.Args, plugin); err != nil {
		return true, err
	}
	m.hooks(a.Hooks, plugin)
	if a.Linux == nil {
		return true, nil
	}
	return true, m.linux(a.Linux, plugin)
}

func (m *merger) linux(a *api.LinuxContainerAdjustment, plugin string) (err error) {
	to := m.adjusted.Linux
	if to.Devices, err = entries(m, api.Field_Devices, to.Devices, a.Devices, plugin, (*api.LinuxDevice).GetPath); err != nil {
		return err
	}
	if to.Namespaces, err = entries(m, api.Field_Namespace, to.Namespaces, a.Namespaces, plugin, (*api.LinuxNamespace).GetType); err != nil {
		return err
	}
	if to.Sysctl, err = m.keys(api.Field_Sysctl, to.Sysctl, a.Sysctl, plugin); err != nil {
		return err
	}
	if to.NetDevices, err = m.netDevices(to.NetDevices, a.NetDevices, plugin); err != nil {
		return err
	}
	if err := m.rdt(a.Rdt, plugin); err != nil {
		return err
	}
	if a.Resources != nil {
		if err := m.resources(m.id, to.Resources, a.Resources, plugin); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		set   bool
		field api.Field
		put   func()
	}{
		{a.CgroupsPath != "", api.Field_CgroupsPath, func() { to.CgroupsPath = a.CgroupsPath }},
		{a.OomScoreAdj != nil, api.Field_OomScoreAdj, func() { to.OomScoreAdj = a.OomScoreAdj }},
		{a.IoPriority != nil, api.Field_IoPriority, func() { to.IoPriority = a.IoPriority }},
		{a.SeccompPolicy != nil, api.Field_SeccompPolicy, func() { to.SeccompPolicy = a.SeccompPolicy }},
		{a.Scheduler != nil, api.Field_LinuxSched, func() { to.Scheduler = a.Scheduler }},
		{a.MemoryPolicy != nil, api.Field_MemoryPolicy, func() { to.MemoryPolicy = a.MemoryPolicy }},
	} {
		if !s.set {
			continue
		}
		if err := m.claim(m.id, s.field, "", plugin); err != nil {
			return err
		}
		s.put()
	}
	return nil
}

// entries adds to a list whose entries have names. A name with a minus before it
// removes the entry: also one that is not of a plugin, so the removal stays in the
// list, before what is added.
func entries[T any](m *merger, f api.Field, have, more []T, plugin string, name func(T) string) ([]T, error) {
	for _, e := range more {
		n, removal := api.IsMarkedForRemoval(name(e))
		if n == "" {
			return nil, errs.New(errs.InvalidArgument, "%s without a name", f)
		}
		if removal {
			m.release(m.id, f, n)
		}
	}
	// Removals count before additions, wherever they are in the plugin's list.
	sorted := slices.Clone(more)
	slices.SortStableFunc(sorted, func(a, b T) int {
		_, x := api.IsMarkedForRemoval(name(a))
		_, y := api.IsMarkedForRemoval(name(b))
		switch {
		case x && !y:
			return -1
		case y && !x:
			return 1
		}
		return 0
	})
	for _, e := range sorted {
		n, removal := api.IsMarkedForRemoval(name(e))
		if !removal {
			if err := m.claim(m.id, f, n, plugin); err != nil {
				return nil, err
			}
		}
		have = slices.DeleteFunc(have, func(o T) bool {
			on, oremoval := api.IsMarkedForRemoval(name(o))
			return on == n && (removal || !oremoval)
		})
		have = append(have, e)
	}
	return have, nil
}

// keys is entries for a map: a removal and an addition of one key are two keys.
func (m *merger) keys(f api.Field, have, more map[string]string, plugin string) (map[string]string, error) {
	if have == nil && len(more) > 0 {
		have = map[string]string{}
	}
	for k := range more {
		if n, removal := api.IsMarkedForRemoval(k); removal {
			m.release(m.id, f, n)
			delete(have, n)
			have[k] = ""
		}
	}
	for _, k := range slices.Sorted(maps.Keys(more)) {
		if _, removal := api.IsMarkedForRemoval(k); removal {
			continue
		}
		if err := m.claim(m.id, f, k, plugin); err != nil {
			return nil, err
		}
		have[k] = more[k]
	}
	return have, nil
}

func (m *merger) netDevices(have, more map[string]*api.LinuxNetDevice, plugin string) (map[string]*api.LinuxNetDevice, error) {
	for _, k := range slices.Sorted(maps.Keys(more)) { // "-x" comes before "x"
		n, removal := api.IsMarkedForRemoval(k)
		if have == nil {
			have = map[string]*api.LinuxNetDevice{}
		}
		if removal {
			m.release(m.id, api.Field_LinuxNetDevices, n)
			delete(have, n)
			continue
		}
		if err := m.claim(m.id, api.Field_LinuxNetDevices, k, plugin); err != nil {
			return nil, err
		}
		have[k] = more[k]
	}
	return have, nil
}

// args replaces the arguments; an empty one in front overrides another plugin's.
func (m *merger) args(args []string, plugin string) error {
	if len(args) == 0 {
		return nil
	}
	if args[0] == "" {
		m.release(m.id, api.Field_Args, "")
		args = args[1:]
	}
	if len(args) == 0 {
		return errs.New(errs.InvalidArgument, "it replaces the arguments by none")
	}
	m.adjusted.Args = slices.Clone(args)
	return m.claim(m.id, api.Field_Args, "", plugin)
}

// hooks are run one after the other: there is no conflict.
func (m *merger) hooks(h *api.Hooks, plugin string) {
	if h == nil || proto.Size(h) == 0 {
		return
	}
	if m.adjusted.Hooks == nil {
		m.adjusted.Hooks = &api.Hooks{}
	}
	proto.Merge(m.adjusted.Hooks, h)
	o := m.of(m.id)
	if others := o.Simple[api.Field_OciHooks.Key()]; others != "" {
		plugin = others + "," + plugin
	}
	o.Simple[api.Field_OciHooks.Key()] = plugin
}

func (m *merger) rdt(r *api.LinuxRdt, plugin string) error {
	if r == nil {
		return nil
	}
	to := m.adjusted.Linux
	if to.Rdt == nil {
		to.Rdt = &api.LinuxRdt{}
	}
	if r.Remove {
		for _, f := range []api.Field{api.Field_RdtClosID, api.Field_RdtSchemata, api.Field_RdtEnableMonitoring} {
			m.release(m.id, f, "")
		}
		to.Rdt = &api.LinuxRdt{Remove: true}
	}
	return m.fields(m.id, to.Rdt.ProtoReflect(), r.ProtoReflect(), rdtFields, plugin)
}

// Which field of the ownership table a field of a message is.
var (
	memoryFields = map[protoreflect.Name]api.Field{
		"limit": api.Field_MemLimit, "reservation": api.Field_MemReservation, "swap": api.Field_MemSwapLimit, "kernel": api.Field_MemKernelLimit,
		"kernel_tcp": api.Field_MemTCPLimit, "swappiness": api.Field_MemSwappiness, "disable_oom_killer": api.Field_MemDisableOomKiller,
		"use_hierarchy": api.Field_MemUseHierarchy,
	}
	cpuFields = map[protoreflect.Name]api.Field{
		"shares": api.Field_CPUShares, "quota": api.Field_CPUQuota, "period": api.Field_CPUPeriod, "realtime_runtime": api.Field_CPURealtimeRuntime,
		"realtime_period": api.Field_CPURealtimePeriod, "cpus": api.Field_CPUSetCPUs, "mems": api.Field_CPUSetMems,
	}
	classFields = map[protoreflect.Name]api.Field{
		"blockio_class": api.Field_BlockioClass, "rdt_class": api.Field_RdtClass, "pids": api.Field_PidsLimit,
	}
	rdtFields = map[protoreflect.Name]api.Field{
		"clos_id": api.Field_RdtClosID, "schemata": api.Field_RdtSchemata, "enable_monitoring": api.Field_RdtEnableMonitoring,
	}
)

// fields sets those fields of a message that have an owner in the table.
func (m *merger) fields(id string, to, from protoreflect.Message, table map[protoreflect.Name]api.Field, plugin string) (err error) {
	from.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		f, ok := table[d.Name()]
		if !ok {
			return true
		}
		if err = m.claim(id, f, "", plugin); err != nil {
			return false
		}
		to.Set(d, v)
		return true
	})
	return err
}

// resources merges limits of one container.
func (m *merger) resources(id string, to, r *api.LinuxResources, plugin string) error {
	if r.Memory != nil {
		if to.Memory == nil {
			to.Memory = &api.LinuxMemory{}
		}
		if err := m.fields(id, to.Memory.ProtoReflect(), r.Memory.ProtoReflect(), memoryFields, plugin); err != nil {
			return err
		}
	}
	if r.Cpu != nil {
		if to.Cpu == nil {
			to.Cpu = &api.LinuxCPU{}
		}
		if err := m.fields(id, to.Cpu.ProtoReflect(), r.Cpu.ProtoReflect(), cpuFields, plugin); err != nil {
			return err
		}
	}
	if err := m.fields(id, to.ProtoReflect(), r.ProtoReflect(), classFields, plugin); err != nil {
		return err
	}
	for _, l := range r.HugepageLimits {
		if err := m.claim(id, api.Field_HugepageLimits, l.GetPageSize(), plugin); err != nil {
			return err
		}
		to.HugepageLimits = slices.DeleteFunc(to.HugepageLimits, func(o *api.HugepageLimit) bool { return o.PageSize == l.PageSize })
		to.HugepageLimits = append(to.HugepageLimits, l)
	}
	for _, k := range slices.Sorted(maps.Keys(r.Unified)) {
		if err := m.claim(id, api.Field_CgroupsUnified, k, plugin); err != nil {
			return err
		}
		if to.Unified == nil {
			to.Unified = map[string]string{}
		}
		to.Unified[k] = r.Unified[k]
	}
	to.Devices = append(to.Devices, r.Devices...)
	return nil
}

// update merges what one plugin wants changed in containers.
func (m *merger) update(all []*api.ContainerUpdate, plugin string) error {
	for _, u := range all {
		id := u.GetContainerId()
		if id == "" {
			return errs.New(errs.InvalidArgument, "plugin %s: an update without a container", plugin)
		}
		to := m.others[id]
		if to == nil {
			to = &api.ContainerUpdate{ContainerId: id, IgnoreFailure: true, Linux: &api.LinuxContainerUpdate{Resources: &api.LinuxResources{}}}
			m.others[id] = to
			m.order = append(m.order, id)
		}
		to.IgnoreFailure = to.IgnoreFailure && u.GetIgnoreFailure()
		if r := u.GetLinux().GetResources(); r != nil {
			if err := m.resources(id, to.Linux.Resources, r, plugin); err != nil {
				if !u.GetIgnoreFailure() {
					return err
				}
			}
		}
	}
	return nil
}

// replace sets all fields of from in to; optional values as a whole, the parts of
// resources one by one.
func replace(to, from protoreflect.Message) {
	from.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if d.Name() == "memory" || d.Name() == "cpu" {
			replace(to.Mutable(d).Message(), v.Message())
		} else {
			to.Set(d, v)
		}
		return true
	})
}
