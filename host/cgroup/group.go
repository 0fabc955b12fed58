// Package cgroup looks at the control groups of one container, version 1 or 2:
// what it uses, which processes it holds, whether the kernel killed one of them
// for want of memory; and it freezes, thaws and signals them. It never makes or
// limits a group: that is the OCI runtime's part; so is the removal, but for the
// empty group of a runtime that was killed.
//
// A group that the caller itself is in, and the root group, are never touched.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/berthd/berth/base/errs"
)

// Host says where the kernel shows its groups; tests put a tree of files there.
type Host struct {
	Root string // "/sys/fs/cgroup"
	Proc string // "/proc"
}

// System is the machine we run on.
var System = Host{Root: "/sys/fs/cgroup", Proc: "/proc"}

// Unified says whether the host has version 2 only (cgroups(7)).
func (h Host) Unified() bool {
	_, err := os.Stat(filepath.Join(h.Root, "cgroup.controllers"))
	return err == nil
}

// Group is the set of directories that hold one container.
type Group struct {
	host    Host
	unified bool
	dirs    map[string]string // controller to directory; version 2 has the one key ""
	hybrid  string            // beside version 1, its directory in the empty version 2 tree, or ""
}

// Of finds the group of a process. The error is of kind NotFound if the process
// is gone, or if it is in no group of its own.
func (h Host) Of(pid int) (*Group, error) {
	theirs, err := h.paths(strconv.Itoa(pid))
	if err != nil {
		return nil, fmt.Errorf("find cgroup of process %d: %w", pid, err)
	}
	own, err := h.paths("self")
	if err != nil {
		return nil, fmt.Errorf("find our own cgroup: %w", err)
	}
	g := h.group(theirs, own)
	if len(g.dirs) == 0 {
		return nil, errs.New(errs.NotFound, "process %d has no cgroup of its own", pid)
	}
	return g, nil
}

// FromSpec finds the group that a runtime makes for linux.cgroupsPath: for the
// systemd driver "slice:prefix:name", else a path, relative to our own group if it
// does not start with a slash. It needs no process, so it works after the exit.
func (h Host) FromSpec(cgroupsPath, id string, systemd bool) (*Group, error) {
	own, err := h.paths("self")
	if err != nil {
		return nil, fmt.Errorf("find our own cgroup: %w", err)
	}
	theirs := map[string]string{}
	for controller, base := range own {
		switch {
		case systemd:
			theirs[controller] = systemdPath(cgroupsPath, id)
		case strings.HasPrefix(cgroupsPath, "/"):
			theirs[controller] = filepath.Clean(cgroupsPath)
		case cgroupsPath == "":
			theirs[controller] = filepath.Join(base, id)
		default:
			theirs[controller] = filepath.Join(base, cgroupsPath)
		}
	}
	g := h.group(theirs, own)
	for controller, dir := range g.dirs {
		if _, err := os.Stat(dir); err != nil {
			delete(g.dirs, controller)
		}
	}
	if len(g.dirs) == 0 && !exists(g.hybrid) {
		return nil, errs.New(errs.NotFound, "cgroup %q does not exist", cgroupsPath)
	}
	return g, nil
}

// group drops what must not be touched: the root, groups outside our view, and
// the ones that we are in.
func (h Host) group(theirs, own map[string]string) *Group {
	g := &Group{host: h, unified: h.Unified(), dirs: map[string]string{}}
	for controller, p := range theirs {
		if p == "/" || p == "" || strings.HasPrefix(p, "/..") || p == own[controller] {
			continue
		}
		switch {
		case g.unified && controller == "":
			g.dirs[""] = filepath.Join(h.Root, p)
		case !g.unified && controller != "":
			dir := strings.TrimPrefix(controller, "name=")
			g.dirs[controller] = filepath.Join(h.Root, dir, p)
		case exists(filepath.Join(h.Root, "unified")):
			g.hybrid = filepath.Join(h.Root, "unified", p)
		}
	}
	return g
}

// paths reads /proc/PID/cgroup: lines of "id:controller,controller:path".
func (h Host) paths(pid string) (map[string]string, error) {
	data, err := os.ReadFile(filepath.Join(h.Proc, pid, "cgroup"))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "no such process") {
			return nil, errs.New(errs.NotFound, "process %s is gone", pid)
		}
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		p := strings.TrimSuffix(parts[2], " (deleted)")
		for c := range strings.SplitSeq(parts[1], ",") {
			out[c] = p
		}
	}
	return out, nil
}

// systemdPath expands "a-b.slice:prefix:name" to /a.slice/a-b.slice/prefix-name.scope
// (systemd.slice(5)).
func systemdPath(cgroupsPath, id string) string {
	slice, prefix, name := "system.slice", "runc", id
	if parts := strings.Split(cgroupsPath, ":"); len(parts) == 3 {
		if parts[0] != "" {
			slice = parts[0]
		}
		prefix, name = parts[1], parts[2]
	}
	dir := "/"
	if slice != "-.slice" {
		words := strings.Split(strings.TrimSuffix(slice, ".slice"), "-")
		for i := range words {
			dir = filepath.Join(dir, strings.Join(words[:i+1], "-")+".slice")
		}
	}
	if strings.HasSuffix(name, ".slice") {
		return filepath.Join(dir, name)
	}
	if prefix != "" {
		name = prefix + "-" + name
	}
	return filepath.Join(dir, name+".scope")
}

// processDir is the directory whose cgroup.procs lists the container.
func (g *Group) processDir() string {
	if g.unified {
		return g.dirs[""]
	}
	for _, c := range []string{"freezer", "pids", "devices", "memory", "cpu", "name=systemd"} {
		if d := g.dirs[c]; d != "" {
			return d
		}
	}
	return ""
}

// Pids lists the processes of the group and of the groups below it, ascending. A
// group that is gone has none.
func (g *Group) Pids() ([]int, error) {
	var out []int
	dir := g.processDir()
	if dir == "" {
		return nil, nil
	}
	err := walk(dir, func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return ignoreGone(err)
		}
		for _, word := range bytes.Fields(data) {
			if pid, err := strconv.Atoi(string(word)); err == nil && pid > 0 {
				out = append(out, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of %s: %w", dir, err)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// walk calls fn for dir and all directories below it.
func walk(dir string, fn func(string) error) error {
	if err := fn(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := walk(filepath.Join(dir, e.Name()), fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// Join puts a process into the group at path, in every hierarchy: for a shim that
// is to live in a given group.
func (h Host) Join(path string, pid int) error {
	text := []byte(strconv.Itoa(pid))
	if h.Unified() {
		return os.WriteFile(filepath.Join(h.Root, path, "cgroup.procs"), text, 0)
	}
	own, err := h.paths("self")
	if err != nil {
		return err
	}
	joined := false
	for c := range own {
		dir := filepath.Join(h.Root, strings.TrimPrefix(c, "name="), path)
		if c == "" || !exists(dir) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), text, 0); err != nil {
			return fmt.Errorf("join cgroup %s: %w", dir, err)
		}
		joined = true
	}
	if !joined {
		return errs.New(errs.NotFound, "cgroup %s does not exist", path)
	}
	return nil
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}
