package pod

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/engine/pod/metric"
	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/store"
)

// MetricDescriptors names the metrics of Metrics.
func MetricDescriptors() []*cri.MetricDescriptor { return metric.Descriptors() }

// Metrics reads what the pods that are ready use, by cAdvisor's names.
func (p *Pods) Metrics(ctx context.Context, ns string) []*cri.PodSandboxMetrics {
	all := slices.DeleteFunc(p.Pods(ns), func(pod *Pod) bool { return pod.State != store.PodReady })
	return each(all, func(pod *Pod) *cri.PodSandboxMetrics { return p.podMetrics(ctx, pod) })
}

func (p *Pods) podMetrics(ctx context.Context, pod *Pod) *cri.PodSandboxMetrics {
	m := pod.Config.GetMetadata()
	labels := metric.Labels{ID: pod.Config.GetLinux().GetCgroupParent(), Name: pod.ID, Namespace: m.GetNamespace(), Pod: m.GetName()}
	out := &cri.PodSandboxMetrics{
		PodSandboxId: pod.ID, Metrics: metric.OfPod(labels, metric.Sample{Usage: cgroup.Usage{At: time.Now()}, Net: p.counters(pod, p.Containers(pod.Namespace, pod.ID))}),
	}
	for _, c := range p.Containers(pod.Namespace, pod.ID) {
		if s, ok := p.sample(ctx, c); ok {
			of := labels
			of.ID, of.Name, of.Image, of.Container = filepath.Join(labels.ID, c.ID), c.ID, c.ImageName, c.Config.GetMetadata().GetName()
			out.ContainerMetrics = append(out.ContainerMetrics, &cri.ContainerMetrics{ContainerId: c.ID, Metrics: metric.OfContainer(of, s)})
		}
	}
	return out
}

// sample reads all there is of a running container.
func (p *Pods) sample(ctx context.Context, c *Container) (metric.Sample, bool) {
	if c.State != store.ContainerRunning {
		return metric.Sample{}, false
	}
	g, err := cgroup.System.Of(int(c.Pid))
	if err != nil {
		return metric.Sample{}, false
	}
	s := metric.Sample{Usage: g.Usage(), Started: c.StartedAt, Resources: c.Config.GetLinux().GetResources(), OpenFiles: openFiles(int(c.Pid))}
	s.Usage.Processes, _ = g.Pids() // a group that goes meanwhile has none
	for _, pid := range s.Usage.Processes {
		files, sockets := descriptors(pid)
		s.Files += files
		s.Sockets += sockets
	}
	if l, err := p.layerSize(ctx, c); err == nil {
		s.LayerBytes = uint64(l.Size)
	}
	if d, err := p.store.Driver(c.Snapshot); err == nil {
		s.Device = d.Root()
		var st unix.Statfs_t
		if unix.Statfs(s.Device, &st) == nil {
			s.Disk = metric.Disk{Bytes: st.Blocks * uint64(st.Bsize), Inodes: st.Files, FreeInodes: st.Ffree}
		}
	}
	return s, true
}

// descriptors counts what a process has open; one that ends meanwhile has nothing.
func descriptors(pid int) (files, sockets uint64) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	all, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0
	}
	for _, e := range all {
		files++
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			sockets++
		}
	}
	return files, sockets
}

// openFiles is a process's soft limit of open files.
func openFiles(pid int) uint64 {
	var lim unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &lim); err != nil {
		return 0
	}
	return lim.Cur
}
