package cgroup

// EachStat calls fn with every number of memory.stat, by the kernel's name for it.
func (m *Memory1) EachStat(fn func(name string, value uint64)) {
	for i, n := range memory1Names {
		fn(n, m.Stat[i])
	}
}

// EachStat calls fn with every number of memory.stat that is kept, by the kernel's
// name for it.
func (v *V2) EachStat(fn func(name string, value uint64)) {
	for i, n := range memory2Names {
		fn(n, v.Memory[i])
	}
}
