package podspec

import (
	"path"
	"slices"
	"strings"

	"github.com/berthd/berth/base/errs"
)

// prefix is how systemd names the scopes: the one that other tools look for.
const prefix = "cri-containerd"

// CgroupPath is where the runtime makes the cgroup of a pod or container: a path, or
// for systemd SLICE:PREFIX:NAME (runc, docs/systemd.md).
func CgroupPath(systemd bool, parent, id string) (string, error) {
	if strings.ContainsAny(parent, "\x00\n:") || slices.Contains(strings.Split(parent, "/"), "..") {
		return "", errs.New(errs.InvalidArgument, "cgroup_parent %q is not a path of a cgroup", parent)
	}
	if !systemd {
		if parent == "" {
			parent = "/k8s.io"
		}
		return path.Join("/", parent, id), nil
	}
	slice := "system.slice"
	if parent != "" {
		slice = path.Base(parent) // the parents of a slice are in its name (systemd.slice(5))
	}
	if !strings.HasSuffix(slice, ".slice") {
		return "", errs.New(errs.InvalidArgument, "cgroup_parent %q is no systemd slice, and the runtime uses systemd's cgroups; kubelet and runtime must use the same driver", parent)
	}
	return strings.Join([]string{slice, prefix, id}, ":"), nil
}
