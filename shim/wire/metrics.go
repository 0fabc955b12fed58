package wire

import (
	"encoding/binary"

	"github.com/berthd/berth/host/cgroup"
)

// Metrics writes the statistics of a group as containerd's clients expect them.
func Metrics(g *cgroup.Group) Any {
	if g.Unified() {
		return Any{"io.containerd.cgroups.v2.Metrics", appendV2(nil, g.StatV2())}
	}
	return Any{"io.containerd.cgroups.v1.Metrics", appendV1(nil, g.StatV1())}
}

// putArray writes values to the fields first, first+1, and so on.
func putArray(b []byte, first int, values []uint64) []byte {
	for i, v := range values {
		b = putUint(b, first+i, v)
	}
	return b
}

func appendV1(b []byte, v *cgroup.V1) []byte {
	for _, h := range v.Hugetlb {
		b = putNested(b, 1, func(b []byte) []byte {
			return putText(putArray(b, 1, []uint64{h.Usage, h.Max, h.Failed}), 4, h.PageSize)
		})
	}
	if v.Pids != nil {
		b = putNested(b, 2, func(b []byte) []byte { return putArray(b, 1, []uint64{v.Pids.Current, v.Pids.Limit}) })
	}
	b = putNested(b, 3, func(b []byte) []byte {
		b = putNested(b, 1, func(b []byte) []byte {
			b = putArray(b, 1, []uint64{v.CPU.Total, v.CPU.Kernel, v.CPU.User})
			return putPacked(b, 4, v.CPU.PerCPU)
		})
		return putNested(b, 2, func(b []byte) []byte { return putArray(b, 1, v.CPU.Throttle[:]) })
	})
	if v.Memory != nil {
		b = putNested(b, 4, func(b []byte) []byte {
			b = putArray(b, 1, v.Memory.Stat[:])
			for i, e := range v.Memory.Entries {
				b = putNested(b, 33+i, func(b []byte) []byte {
					return putArray(b, 1, []uint64{e.Limit, e.Usage, e.Max, e.Failed})
				})
			}
			return b
		})
	}
	if v.Blkio != nil {
		b = putNested(b, 5, func(b []byte) []byte { return appendBlkio(b, v.Blkio) })
	}
	if v.RDMA != nil {
		b = putNested(b, 6, func(b []byte) []byte { return appendRDMA(b, v.RDMA) })
	}
	if v.OOM != nil {
		b = putNested(b, 9, func(b []byte) []byte { return putArray(b, 1, v.OOM[:]) })
	}
	return b
}

func putPacked(b []byte, num int, values []uint64) []byte {
	if len(values) == 0 {
		return b
	}
	return putNested(b, num, func(b []byte) []byte {
		for _, v := range values {
			b = binary.AppendUvarint(b, v)
		}
		return b
	})
}

func appendBlkio(b []byte, v *cgroup.Blkio) []byte {
	for i, list := range v.Lists {
		for _, e := range list {
			b = putNested(b, 1+i, func(b []byte) []byte {
				b = putText(putText(b, 1, e.Op), 2, e.Device)
				return putArray(b, 3, []uint64{e.Major, e.Minor, e.Value})
			})
		}
	}
	return b
}

func appendRDMA(b []byte, v *cgroup.RDMA) []byte {
	for i, list := range [][]cgroup.RDMAEntry{v.Current, v.Limit} {
		for _, e := range list {
			b = putNested(b, 1+i, func(b []byte) []byte {
				return putArray(putText(b, 1, e.Device), 2, []uint64{uint64(e.Handles), uint64(e.Objects)})
			})
		}
	}
	return b
}

func appendV2(b []byte, v *cgroup.V2) []byte {
	b = putNested(b, 1, func(b []byte) []byte { return putArray(b, 1, []uint64{v.Pids.Current, v.Pids.Limit}) })
	b = putNested(b, 2, func(b []byte) []byte {
		b = putArray(b, 1, v.CPU[:])
		return putArray(putPressure(b, 7, v.CPUWait), 8, v.Bursts[:])
	})
	b = putNested(b, 4, func(b []byte) []byte {
		b = putArray(putArray(b, 1, v.Memory[:]), 32, v.Limits[:])
		return putPressure(b, 38, v.MemWait)
	})
	b = putNested(b, 5, func(b []byte) []byte { return appendRDMA(b, &v.RDMA) })
	b = putNested(b, 6, func(b []byte) []byte {
		for _, e := range v.IO {
			b = putNested(b, 1, func(b []byte) []byte {
				return putArray(b, 1, []uint64{e.Major, e.Minor, e.RBytes, e.WBytes, e.RIOs, e.WIOs})
			})
		}
		return putPressure(b, 2, v.IOWait)
	})
	for _, h := range v.Hugetlb {
		b = putNested(b, 7, func(b []byte) []byte {
			return putUint(putText(putArray(b, 1, []uint64{h.Usage, h.Max}), 3, h.PageSize), 4, h.Failed)
		})
	}
	if v.Events != nil {
		b = putNested(b, 8, func(b []byte) []byte { return putArray(b, 1, v.Events[:]) })
	}
	return b
}

func putPressure(b []byte, num int, p *cgroup.Pressure) []byte {
	if p == nil {
		return b
	}
	return putNested(b, num, func(b []byte) []byte {
		for i, s := range []*cgroup.Stall{p.Some, p.Full} {
			if s != nil {
				b = putNested(b, 1+i, func(b []byte) []byte {
					b = putDouble(putDouble(putDouble(b, 1, s.Avg10), 2, s.Avg60), 3, s.Avg300)
					return putUint(b, 4, s.Total)
				})
			}
		}
		return b
	})
}
