// Package metric turns what was read of a pod's cgroups and interfaces into the
// metrics of CRI, which have cAdvisor's names. It reads nothing itself.
package metric

import (
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/host/netns"
)

// Labels are what every metric carries; those of cAdvisor in a kubelet.
type Labels struct{ ID, Name, Image, Container, Namespace, Pod string }

var baseKeys = []string{"id", "name", "image", "container", "namespace", "pod"}

func (l Labels) values() []string {
	return []string{l.ID, l.Name, l.Image, l.Container, l.Namespace, l.Pod}
}

// Sample is all that was read of a container, or of a pod as a whole.
type Sample struct {
	Usage      cgroup.Usage
	Started    time.Time
	Resources  *cri.LinuxContainerResources
	Net        []netns.Counter // of pods
	Device     string          // that holds the container's own layer
	LayerBytes uint64          // of that layer
	Disk       Disk
	Files      uint64 // open file descriptors
	Sockets    uint64 // among them
	OpenFiles  uint64 // soft limit of the first process
}

// Disk is a file system as statfs(2) tells of it.
type Disk struct{ Bytes, Inodes, FreeInodes uint64 }

type point struct {
	value  uint64
	labels []string
}

func one(n uint64) []point { return []point{{value: n}} }

// metric is one of them: where its values come from.
type metric struct {
	name, help string
	typ        cri.MetricType
	keys       []string
	read       func(*Sample) []point
}

const (
	counter = cri.MetricType_COUNTER
	gauge   = cri.MetricType_GAUGE
)

const second = uint64(time.Second)

// Descriptors lists all metrics with the keys of their labels.
func Descriptors() []*cri.MetricDescriptor {
	var out []*cri.MetricDescriptor
	for _, list := range [][]metric{containers, pods} {
		for _, m := range list {
			out = append(out, &cri.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(append([]string(nil), baseKeys...), m.keys...)})
		}
	}
	return out
}

// OfContainer are the metrics of one container.
func OfContainer(l Labels, s Sample) []*cri.Metric { return points(containers, l, s) }

// OfPod are the metrics of a pod as a whole: its network.
func OfPod(l Labels, s Sample) []*cri.Metric { return points(pods, l, s) }

func points(list []metric, l Labels, s Sample) []*cri.Metric {
	base, at := l.values(), s.Usage.At.UnixNano()
	out := make([]*cri.Metric, 0, len(list))
	for _, m := range list {
		for _, p := range m.read(&s) {
			out = append(out, &cri.Metric{
				Name: m.name, Timestamp: at, MetricType: m.typ, LabelValues: append(append([]string(nil), base...), p.labels...), Value: &cri.UInt64Value{Value: p.value},
			})
		}
	}
	return out
}

// limit is 0 where there is none: that is how cAdvisor has it.
func limit(n uint64) uint64 {
	if n == cgroup.NoLimit {
		return 0
	}
	return n
}

func positive(n int64) uint64 { return uint64(max(0, n)) }

// network makes one point for each interface.
func network(of func(netns.Counter) uint64) func(*Sample) []point {
	return func(s *Sample) []point {
		var out []point
		for _, c := range s.Net {
			out = append(out, point{of(c), []string{c.Name}})
		}
		return out
	}
}

// disk makes one point for each device that the cgroup has used.
func disk(of func(cgroup.IOUsage) uint64) func(*Sample) []point {
	return func(s *Sample) []point {
		var out []point
		for _, io := range s.Usage.IO {
			out = append(out, point{of(io), []string{number(io.Major) + ":" + number(io.Minor)}})
		}
		return out
	}
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

// layer makes a point of the device that holds the container's layer.
func layer(of func(*Sample) uint64) func(*Sample) []point {
	return func(s *Sample) []point { return []point{{of(s), []string{s.Device}}} }
}

// stalled is how long all (full) or some of the processes waited.
func stalled(of func(*cgroup.Usage) *cgroup.Pressure, full bool) func(*Sample) []point {
	return func(s *Sample) []point {
		p := of(&s.Usage)
		if p == nil {
			return nil
		}
		st := p.Some
		if full {
			st = p.Full
		}
		if st == nil {
			return nil
		}
		return one(st.Total / 1e6) // µs
	}
}
