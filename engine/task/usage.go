package task

import (
	"slices"
	"strings"

	"github.com/berthd/berth/host/cgroup"
)

// Usage is what a container's cgroup counted until now.
type Usage struct {
	Namespace, ID, Runtime string
	V1                     *cgroup.V1 // one of the two is set
	V2                     *cgroup.V2
}

// Usages reads the cgroups of all tasks of all namespaces, straight from the kernel:
// no shim is asked. Tasks that have no process any more are left out.
func (t *Tasks) Usages() []Usage {
	type running struct {
		key     key
		runtime string
		pid     int
	}
	t.mu.Lock()
	all := make([]running, 0, len(t.mu.tasks))
	for k, task := range t.mu.tasks {
		if task.use != nil && task.row.Body.Pid > 0 {
			all = append(all, running{k, task.row.Runtime, int(task.row.Body.Pid)})
		}
	}
	t.mu.Unlock()
	slices.SortFunc(all, func(a, b running) int { return strings.Compare(a.key.String(), b.key.String()) })
	var out []Usage
	for _, r := range all {
		g, err := cgroup.System.Of(r.pid)
		if err != nil {
			continue // it ended
		}
		u := Usage{Namespace: r.key.ns, ID: r.key.id, Runtime: r.runtime}
		if g.Unified() {
			u.V2 = g.StatV2()
		} else {
			u.V1 = g.StatV1()
		}
		out = append(out, u)
	}
	return out
}
