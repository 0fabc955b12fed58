package cgroup

import (
	"path/filepath"
	"strings"
)

// Parent finds the group that a kubelet makes for a pod: a path, or the name of a
// slice as systemd has it ("a-b.slice").
func (h Host) Parent(name string) (*Group, error) {
	if strings.HasSuffix(name, ".slice") {
		dir := "/"
		if base := filepath.Base(name); base != "-.slice" {
			words := strings.Split(strings.TrimSuffix(base, ".slice"), "-")
			for i := range words {
				dir = filepath.Join(dir, strings.Join(words[:i+1], "-")+".slice")
			}
		}
		return h.FromSpec(dir, "", false)
	}
	return h.FromSpec(filepath.Join("/", name), "", false)
}
