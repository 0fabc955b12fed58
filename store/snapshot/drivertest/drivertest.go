// Package drivertest is the suite that every snapshot driver passes, with real
// mounts. It needs root and leaves nothing mounted.
package drivertest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/store/snapshot"
)

// Factory opens the driver that is tested in an empty or used directory.
type Factory func(t *testing.T, root string) snapshot.Driver

// Run runs the suite, each case with a driver of its own.
func Run(t *testing.T, open Factory) {
	if os.Geteuid() != 0 {
		t.Fatal("the snapshot drivers can only be tested by root")
	}
	cases := []struct {
		name string
		run  func(*suite)
	}{
		{"a layer is written, sealed and seen", basic},
		{"a child changes files and not its parent", update},
		{"files replaced in a child read anew", layerFileUpdate},
		{"a removed snapshot is gone and others stay", remove},
		{"remove is idempotent and refuses what is mounted", removeTwice},
		{"a directory removed in a child is gone in its children", directoryRemoved},
		{"owners changed in a child stay changed", chown},
		{"directory modes survive sealing", directoryMode},
		{"files deleted in a child do not come back", deletedInChild},
		{"a file moved from a lower layer", movedFromLower},
		{"files and directories renamed in a child", rename},
		{"a view cannot be written", viewReadOnly},
		{"a view of nothing is empty", viewOfNothing},
		{"128 layers", manyLayers},
		{"the root has its parent's mode and owner", rootAttributes},
		{"make again starts afresh", makeAgain},
		{"a driver opened anew knows the same snapshots", reopened},
		{"list names all and half made ones", list},
		{"usage counts a hard-linked file once", usage},
		{"sealing twice", sealTwice},
		{"layers filled from tar look like layers that were mounted", filled},
		{"layers filled before their parents", rebased},
		{"ids seen through a map", mapped},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			c.run(&suite{T: t, Driver: open(t, root), open: open, root: root, chain: map[uint64][]uint64{}})
			if left, err := mount.Points(root); err != nil || len(left) > 0 {
				t.Errorf("left mounted: %v %v", left, err)
			}
		})
	}
}

type suite struct {
	*testing.T
	snapshot.Driver
	open  Factory
	root  string
	last  uint64
	chain map[uint64][]uint64 // committed id: itself and its parents, nearest first
}

func (s *suite) ctx() context.Context { return s.T.Context() }

func (s *suite) ok(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

// make makes a snapshot above parent (0: none).
func (s *suite) make(kind snapshot.Kind, parent uint64) snapshot.Layer {
	s.Helper()
	s.last++
	l := snapshot.Layer{ID: s.last, Kind: kind, Parents: s.chain[parent]}
	s.ok("make", s.Make(s.ctx(), l))
	return l
}

// seal commits what make made.
func (s *suite) seal(l snapshot.Layer) uint64 {
	s.Helper()
	l.Kind = snapshot.Committed
	_, err := s.Seal(s.ctx(), l)
	s.ok("seal", err)
	s.chain[l.ID] = append([]uint64{l.ID}, l.Parents...)
	return l.ID
}

// in mounts a snapshot and runs f in it.
func (s *suite) in(l snapshot.Layer, f func(root string)) {
	s.Helper()
	mounts, err := s.Mounts(s.ctx(), l)
	s.ok("mounts", err)
	s.ok("mount", mount.Temp(s.ctx(), mounts, func(root string) error {
		f(root)
		return nil
	}))
}

// layer makes, changes and seals a layer.
func (s *suite) layer(parent uint64, changes ...change) uint64 {
	s.Helper()
	l := s.make(snapshot.Active, parent)
	s.in(l, func(root string) { s.apply(root, changes...) })
	return s.seal(l)
}

func (s *suite) apply(root string, changes ...change) {
	s.Helper()
	for _, c := range changes {
		s.ok("change", c(root))
	}
}

// sees checks what a view of a layer, and an active snapshot above it, hold.
func (s *suite) sees(parent uint64, want ...string) {
	s.Helper()
	for _, kind := range []snapshot.Kind{snapshot.View, snapshot.Active} {
		l := s.make(kind, parent)
		s.in(l, func(root string) { s.holds(root, want...) })
		s.ok("remove", s.Remove(s.ctx(), l.ID))
	}
}

// holds compares the tree with lines of "path contents", "path/", "path -> target".
func (s *suite) holds(root string, want ...string) {
	s.Helper()
	got, err := describe(root)
	s.ok("look", err)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.Errorf("tree is\n%q\nwant\n%q", got, want)
	}
}

func describe(root string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		rel, e := filepath.Rel(root, p)
		if err = errors.Join(err, e); err != nil || rel == "." {
			return err
		}
		switch {
		case d.IsDir():
			rel += "/"
		case d.Type().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += " " + string(data)
		case d.Type() == os.ModeSymlink:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			rel += " -> " + to
		default:
			rel += " " + d.Type().String()
		}
		out = append(out, rel)
		return nil
	})
	slices.Sort(out)
	return out, err
}

// change is one change below a root.
type change func(root string) error

func write(name, text string) change {
	return func(root string) error { return os.WriteFile(filepath.Join(root, name), []byte(text), 0o644) }
}

func mkdir(name string, mode os.FileMode) change {
	return func(root string) error {
		return errors.Join(os.Mkdir(filepath.Join(root, name), 0o700), os.Chmod(filepath.Join(root, name), mode))
	}
}

func chmod(name string, mode os.FileMode) change {
	return func(root string) error { return os.Chmod(filepath.Join(root, name), mode) }
}

func chownTo(name string, uid, gid int) change {
	return func(root string) error { return os.Lchown(filepath.Join(root, name), uid, gid) }
}

func drop(name string) change {
	return func(root string) error { return os.RemoveAll(filepath.Join(root, name)) }
}

func move(from, to string) change {
	return func(root string) error {
		from, to := filepath.Join(root, from), filepath.Join(root, to)
		err := os.Rename(from, to)
		if err == nil || !errors.Is(err, errXDEV) {
			return err
		}
		// Overlay without redirect_dir: a directory of a lower layer is copied, as mv does.
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			return err
		}
		return os.RemoveAll(from)
	}
}

func symlink(target, name string) change {
	return func(root string) error { return os.Symlink(target, filepath.Join(root, name)) }
}

func hardlink(old, name string) change {
	return func(root string) error { return os.Link(filepath.Join(root, old), filepath.Join(root, name)) }
}
