package cgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestRemove removes a real group with one below it, not before its process has
// left, and none that is not there.
func TestRemove(t *testing.T) {
	own, err := System.paths("self")
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/berth-remove-%d", os.Getpid())
	theirs := map[string]string{}
	for c := range own {
		theirs[c] = name
	}
	g := System.group(theirs, own)
	dirs := slices.Collect(maps.Values(g.dirs))
	if g.hybrid != "" {
		dirs = append(dirs, g.hybrid)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(dir, "below"), 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(dir)
		defer os.Remove(filepath.Join(dir, "below"))
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	procs := filepath.Join(g.processDir(), "below", "cgroup.procs")
	if err := os.WriteFile(procs, fmt.Append(nil, cmd.Process.Pid), 0); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := g.Remove(short); err == nil {
		t.Fatal("a group was removed that has a process")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(t.Context()); err != nil { // dying processes are waited for
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", dir, err)
		}
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Errorf("remove again: %v", err)
	}
}
