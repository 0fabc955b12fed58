package pod

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/host/netns"
	"github.com/berthd/berth/store"
)

// Select chooses pods or containers; what is empty does not restrict.
type Select struct {
	ID     string // or the beginning of one
	Pod    string // likewise; for containers
	Labels map[string]string
}

func (s Select) match(id, pod string, labels map[string]string) bool {
	if !strings.HasPrefix(id, s.ID) || !strings.HasPrefix(pod, s.Pod) {
		return false
	}
	for k, want := range s.Labels {
		if have, ok := labels[k]; !ok || have != want {
			return false
		}
	}
	return true
}

// readers is how many cgroups are read at once.
const readers = 4

// each runs fn for all, several at a time, and keeps the order of the results; nil
// ones are left out.
func each[T, R any](all []T, fn func(T) *R) []*R {
	out := make([]*R, len(all))
	slots := make(chan struct{}, readers)
	var wg sync.WaitGroup
	for i, v := range all {
		slots <- struct{}{}
		wg.Add(1)
		// owner: this function waits for it below.
		go func() {
			defer func() { <-slots; wg.Done() }()
			out[i] = fn(v)
		}()
	}
	wg.Wait()
	return slices.DeleteFunc(out, func(r *R) bool { return r == nil })
}

// ContainerStats reads what one container uses.
func (p *Pods) ContainerStats(ctx context.Context, ns, id string) (*cri.ContainerStats, error) {
	c, err := p.Container(ns, id)
	if err != nil {
		return nil, err
	}
	return p.containerStats(ctx, c), nil
}

// AllContainerStats reads what containers use: those that are made and not over.
func (p *Pods) AllContainerStats(ctx context.Context, ns string, s Select) []*cri.ContainerStats {
	all := slices.DeleteFunc(p.Containers(ns, ""), func(c *Container) bool {
		return c.State != store.ContainerRunning && c.State != store.ContainerCreated || !s.match(c.ID, c.Pod, c.Config.GetLabels())
	})
	return each(all, func(c *Container) *cri.ContainerStats { return p.containerStats(ctx, c) })
}

// PodStats reads what a pod uses as a whole and by containers.
func (p *Pods) PodStats(ctx context.Context, ns, id string) (*cri.PodSandboxStats, error) {
	pod, err := p.Pod(ns, id)
	if err != nil {
		return nil, err
	}
	return p.podStats(ctx, pod), nil
}

// AllPodStats reads what the pods use that are ready.
func (p *Pods) AllPodStats(ctx context.Context, ns string, s Select) []*cri.PodSandboxStats {
	all := slices.DeleteFunc(p.Pods(ns), func(pod *Pod) bool {
		return pod.State != store.PodReady || !s.match(pod.ID, "", pod.Config.GetLabels())
	})
	return each(all, func(pod *Pod) *cri.PodSandboxStats { return p.podStats(ctx, pod) })
}

func value(n uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: n} }

// containerUsage reads a running container's cgroup. One that ends meanwhile has
// used nothing.
func (p *Pods) containerUsage(c *Container) (cgroup.Usage, bool) {
	if c.State != store.ContainerRunning || c.Pid == 0 {
		return cgroup.Usage{}, false
	}
	g, err := cgroup.System.Of(int(c.Pid))
	if err != nil {
		return cgroup.Usage{}, false
	}
	return g.Brief(), true
}

func (p *Pods) containerStats(ctx context.Context, c *Container) *cri.ContainerStats {
	m := c.Config.GetMetadata()
	st := &cri.ContainerStats{Attributes: &cri.ContainerAttributes{Id: c.ID, Metadata: m, Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations()}}
	st.WritableLayer = p.writable(ctx, c)
	u, ok := p.containerUsage(c)
	if !ok {
		now := time.Now().UnixNano()
		st.Cpu = &cri.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: value(0), UsageNanoCores: value(0)}
		st.Memory = &cri.MemoryUsage{Timestamp: now, WorkingSetBytes: value(0)}
		return st
	}
	st.Cpu = p.cpuStats(key{c.Namespace, c.ID}, u, c.StartedAt)
	st.Memory, st.Swap, st.Io = memoryStats(u), swapStats(u), ioStats(u)
	return st
}

// rates remembers what was last read of each cgroup, from which the present use of
// processors follows. Nothing is read on its behalf.
type rates struct {
	mu  sync.Mutex
	all map[key]rate
}

type rate struct {
	at    time.Time
	total uint64
	cores uint64 // nanoseconds a second
}

// shortest is the time between two readings below which a rate is noise.
const shortest = 100 * time.Millisecond

// of returns the rate since the last reading, or since the start.
func (r *rates) of(k key, u cgroup.Usage, started time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.all[k]
	if !ok {
		old = rate{at: started}
	}
	passed := u.At.Sub(old.at)
	if passed < shortest && ok || passed <= 0 {
		return old.cores
	}
	now := rate{at: u.At, total: u.CPU.Total}
	if u.CPU.Total >= old.total {
		now.cores = uint64(float64(u.CPU.Total-old.total) * float64(time.Second) / float64(passed))
	}
	if r.all == nil {
		r.all = map[key]rate{}
	}
	r.all[k] = now
	return now.cores
}

func (r *rates) forget(k key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, k)
}

func (p *Pods) cpuStats(k key, u cgroup.Usage, started time.Time) *cri.CpuUsage {
	return &cri.CpuUsage{
		Timestamp: u.At.UnixNano(), UsageCoreNanoSeconds: value(u.CPU.Total), UsageNanoCores: value(p.rates.of(k, u, started)), Psi: psi(u.CPUWait),
	}
}

func memoryStats(u cgroup.Usage) *cri.MemoryUsage {
	m := &cri.MemoryUsage{
		Timestamp: u.At.UnixNano(), WorkingSetBytes: value(u.Memory.WorkingSet), UsageBytes: value(u.Memory.Usage), RssBytes: value(u.Memory.RSS),
		PageFaults: value(u.Memory.Faults), MajorPageFaults: value(u.Memory.MajorFaults), Psi: psi(u.MemWait),
	}
	if u.Memory.Limit != cgroup.NoLimit && u.Memory.Limit >= u.Memory.WorkingSet {
		m.AvailableBytes = value(u.Memory.Limit - u.Memory.WorkingSet)
	}
	return m
}

func swapStats(u cgroup.Usage) *cri.SwapUsage {
	s := &cri.SwapUsage{Timestamp: u.At.UnixNano(), SwapUsageBytes: value(u.Memory.Swap)}
	if u.Memory.SwapLimit != cgroup.NoLimit && u.Memory.SwapLimit >= u.Memory.Swap {
		s.SwapAvailableBytes = value(u.Memory.SwapLimit - u.Memory.Swap)
	}
	return s
}

func ioStats(u cgroup.Usage) *cri.IoUsage {
	return &cri.IoUsage{Timestamp: u.At.UnixNano(), Psi: psi(u.IOWait)}
}

// psi is nil where the kernel does not tell (PSI is off, or cgroup version 1).
func psi(w *cgroup.Pressure) *cri.PsiStats {
	if w == nil {
		return nil
	}
	data := func(s *cgroup.Stall) *cri.PsiData {
		if s == nil {
			return nil
		}
		return &cri.PsiData{Total: s.Total * 1000, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &cri.PsiStats{Full: data(w.Full), Some: data(w.Some)}
}

// podUsage reads the group that the kubelet made for a pod, or adds up those of its
// containers where it made none.
func (p *Pods) podUsage(pod *Pod, containers []*Container) cgroup.Usage {
	if parent := pod.Config.GetLinux().GetCgroupParent(); parent != "" {
		if g, err := cgroup.System.Parent(parent); err == nil {
			u := g.Brief()
			u.Processes, _ = g.Pids() // a group that goes meanwhile has none
			return u
		}
	}
	u := cgroup.Usage{At: time.Now()}
	u.Memory.Limit, u.Memory.SwapLimit = cgroup.NoLimit, cgroup.NoLimit
	for _, c := range containers {
		if c.State != store.ContainerRunning {
			continue
		}
		if g, err := cgroup.System.Of(int(c.Pid)); err == nil {
			one := g.Brief()
			one.Processes, _ = g.Pids()
			u.Add(one)
		}
	}
	return u
}

func (p *Pods) podStats(ctx context.Context, pod *Pod) *cri.PodSandboxStats {
	containers := p.Containers(pod.Namespace, pod.ID)
	u := p.podUsage(pod, containers)
	st := &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{Id: pod.ID, Metadata: pod.Config.GetMetadata(), Labels: pod.Config.GetLabels(), Annotations: pod.Config.GetAnnotations()},
		Linux: &cri.LinuxPodSandboxStats{
			Cpu: p.cpuStats(key{pod.Namespace, pod.ID}, u, pod.CreatedAt), Memory: memoryStats(u), Io: ioStats(u),
			Process: &cri.ProcessUsage{Timestamp: u.At.UnixNano(), ProcessCount: value(uint64(len(u.Processes)))},
		},
	}
	if net := p.counters(pod, containers); len(net) > 0 {
		st.Linux.Network = networkStats(net, u.At)
	}
	for _, c := range containers {
		if c.State == store.ContainerRunning {
			st.Linux.Containers = append(st.Linux.Containers, p.containerStats(ctx, c))
		}
	}
	return st
}

// counters reads the interfaces of a pod that has its own.
func (p *Pods) counters(pod *Pod, containers []*Container) []netns.Counter {
	if hostNetwork(pod.Config) {
		return nil
	}
	for _, c := range containers {
		if c.State != store.ContainerRunning || c.Pid == 0 {
			continue
		}
		if all, err := netns.CountersOf(int(c.Pid)); err == nil {
			return all
		}
	}
	path := p.cfg.Sandbox.Namespaces(pod.ID).Net
	if path == "" {
		return nil
	}
	all, err := netns.Counters(path)
	if err != nil && !errs.Is(err, errs.NotFound) {
		p.log.Debug("interface counters", "pod", pod.ID, "error", err)
	}
	return all
}

// defaultInterface is what CNI calls a pod's first interface.
const defaultInterface = "eth0"

func networkStats(all []netns.Counter, at time.Time) *cri.NetworkUsage {
	out := &cri.NetworkUsage{Timestamp: at.UnixNano()}
	for _, c := range all {
		i := &cri.NetworkInterfaceUsage{Name: c.Name, RxBytes: value(c.RxBytes), RxErrors: value(c.RxErrors), TxBytes: value(c.TxBytes), TxErrors: value(c.TxErrors)}
		if c.Name == defaultInterface {
			out.DefaultInterface = i
		} else {
			out.Interfaces = append(out.Interfaces, i)
		}
	}
	return out
}
