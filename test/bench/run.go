package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// pullBusybox makes the small image ready on both sides.
func (b *bench) pullBusybox(ctx context.Context) error {
	for _, s := range b.sides {
		if _, err := s.ctr(ctx, "images", "pull", "--plain-http", b.image("busybox")); err != nil {
			return err
		}
	}
	return nil
}

// runs times a container's whole life, by the same client, and by berth's own if
// there is one.
func (b *bench) runs(ctx context.Context) error {
	if err := b.pullBusybox(ctx); err != nil {
		return err
	}
	progress("run --rm")
	ours, theirs, err := b.inTurns(b.o.runs, func(s *side, round int) (float64, error) {
		return s.timed(ctx, "ctr", "run", "--rm", b.image("busybox"), s.id(fmt.Sprintf("run%d", round)), "true")
	})
	if err != nil {
		return err
	}
	rows := []row{{"`ctr run --rm IMAGE true`, ms", ours, theirs}}
	own := filepath.Join(b.o.bin, "berth")
	if _, err := b.sides[0].program(ctx, own, "run", "--help"); err == nil {
		ours, theirs, err = b.inTurns(b.o.runs, func(s *side, round int) (float64, error) {
			if s.name == "berth" {
				return s.timed(ctx, own, "-n", "default", "run", "--rm", "--network", "none", b.image("busybox"), "true")
			}
			return s.timed(ctx, "ctr", "run", "--rm", b.image("busybox"), s.id(fmt.Sprintf("own%d", round)), "true")
		})
		if err != nil {
			return err
		}
		rows = append(rows, row{"`berth run --rm IMAGE true` beside `ctr run`, ms", ours, theirs})
	}
	table("Run", rows)
	return nil
}

// execs times one more process in a running container.
func (b *bench) execs(ctx context.Context) error {
	if err := b.pullBusybox(ctx); err != nil {
		return err
	}
	progress("exec")
	for _, s := range b.sides {
		if _, err := s.ctr(ctx, "run", "-d", b.image("busybox"), s.id("execs"), "sleep", "100000"); err != nil {
			return err
		}
		defer s.remove(ctx, s.id("execs"))
	}
	ours, theirs, err := b.inTurns(b.o.runs, func(s *side, round int) (float64, error) {
		return s.timed(ctx, "ctr", "tasks", "exec", "--exec-id", fmt.Sprintf("e%d", round), s.id("execs"), "true")
	})
	if err != nil {
		return err
	}
	table("Exec", []row{{"`ctr tasks exec … true`, ms", ours, theirs}})
	return nil
}

// id names a container: both sides are on one machine, and two with one name would
// have one cgroup.
func (s *side) id(name string) string { return s.name + "-" + name }

// remove ends a container of ctr's.
func (s *side) remove(ctx context.Context, id string) {
	if _, err := s.ctr(ctx, "tasks", "rm", "-f", id); err != nil {
		progress("%v", err)
	}
	if _, err := s.ctr(ctx, "containers", "rm", id); err != nil {
		progress("%v", err)
	}
}

// pulls times cold pulls with unpack: nothing of the image is there, and no cache
// holds a byte of it.
func (b *bench) pulls(ctx context.Context) error {
	var rows, cpu []row
	for _, im := range pullImages {
		ref := b.image(im.name)
		used := map[string]*series{"berth": {}, "containerd": {}}
		ours, theirs, err := b.inTurns(max(3, b.o.runs/10), func(s *side, round int) (float64, error) {
			progress("pull %s, %s, round %d", im.name, s.name, round)
			if err := dropCaches(); err != nil {
				return 0, err
			}
			before := s.cpu()
			took, err := s.timed(ctx, "ctr", "images", "pull", "--plain-http", ref)
			if err != nil {
				return 0, err
			}
			if round > 0 {
				*used[s.name] = append(*used[s.name], (s.cpu()-before)/1000)
			}
			_, err = s.ctr(ctx, "images", "rm", "--sync", ref)
			return took / 1000, err
		})
		if err != nil {
			return err
		}
		rows = append(rows, row{im.what + ", s", ours, theirs})
		cpu = append(cpu, row{im.what + ": CPU of the daemon, s", *used["berth"], *used["containerd"]})
	}
	table("Cold pull and unpack (`ctr images pull`)", append(rows, cpu...))
	return nil
}

// dropCaches makes every read come from the disk (Documentation/admin-guide/sysctl/vm.rst).
func dropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil && !strings.Contains(err.Error(), "read-only") {
		return fmt.Errorf("drop caches: %w", err)
	}
	return nil
}
