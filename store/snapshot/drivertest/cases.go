package drivertest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/store/snapshot"
)

var errXDEV = unix.EXDEV

func basic(s *suite) {
	a := s.make(snapshot.Active, 0)
	s.in(a, func(root string) {
		s.holds(root)
		s.apply(root, write("one", "1"), mkdir("d", 0o755), write("d/two", "2"), symlink("one", "link"))
	})
	s.in(a, func(root string) { s.holds(root, "one 1", "d/", "d/two 2", "link -> one") })
	id := s.seal(a)
	s.sees(id, "one 1", "d/", "d/two 2", "link -> one")
	top := s.layer(s.layer(id, write("three", "3")), write("four", "4"))
	s.sees(top, "one 1", "d/", "d/two 2", "link -> one", "three 3", "four 4")
}

func update(s *suite) {
	low := s.layer(0, write("a", "1"), write("b", "1"), mkdir("d", 0o755), write("d/c", "1"))
	mid := s.layer(low, write("a", "2"), drop("b"), write("d/c", "22"), write("d/new", "2"))
	top := s.layer(mid, write("b", "3"), drop("d"))
	s.sees(low, "a 1", "b 1", "d/", "d/c 1")
	s.sees(mid, "a 2", "d/", "d/c 22", "d/new 2")
	s.sees(top, "a 2", "b 3")
}

func layerFileUpdate(s *suite) {
	id := s.layer(0, write("f", "first"), mkdir("d", 0o755), write("d/f", "first"))
	for i := range 5 {
		text := fmt.Sprintf("round %d", i)
		id = s.layer(id, write("f", text), drop("d/f"), write("d/f", text))
		s.sees(id, "f "+text, "d/", "d/f "+text)
	}
}

func remove(s *suite) {
	low := s.layer(0, write("f", "1"))
	one, two := s.make(snapshot.Active, low), s.make(snapshot.Active, low)
	s.in(one, func(root string) { s.apply(root, write("one", "1")) })
	s.in(two, func(root string) { s.apply(root, write("two", "2")) })
	s.ok("remove", s.Remove(s.ctx(), one.ID))
	s.in(two, func(root string) { s.holds(root, "f 1", "two 2") })
	ids, err := s.List(s.ctx())
	if s.ok("list", err); slices.Contains(ids, one.ID) {
		s.Errorf("the removed %d is still listed: %v", one.ID, ids)
	}
	// The same directory tree, many times deeper than there are handles.
	deep := s.make(snapshot.Active, 0)
	s.in(deep, func(root string) {
		dir, err := unix.Open(root, unix.O_PATH, 0)
		for i := 0; err == nil && i < 3000; i++ {
			if err = unix.Mkdirat(dir, "d", 0o755); err == nil {
				up := dir
				dir, err = unix.Openat(up, "d", unix.O_PATH, 0)
				unix.Close(up)
			}
		}
		s.ok("dig", errors.Join(err, unix.Close(dir)))
	})
	u, err := s.Usage(s.ctx(), deep)
	if s.ok("usage", err); u.Inodes != 3001 {
		s.Errorf("a chain of 3000 directories has %d inodes", u.Inodes)
	}
	s.ok("remove a deep tree", s.Remove(s.ctx(), deep.ID))
}

func removeTwice(s *suite) {
	a := s.make(snapshot.Active, s.layer(0, write("f", "1")))
	s.in(a, func(root string) { s.apply(root, write("g", "2")) })
	mounts, err := s.Mounts(s.ctx(), a)
	s.ok("mounts", err)
	source := mounts[0].Source
	if mounts[0].Type == "overlay" {
		var ok bool
		if source, _, ok = s.Fill(s.ctx(), a); !ok {
			s.Fatal("an overlay driver without a directory to fill")
		}
	}
	in := filepath.Join(source, "busy")
	s.ok("mkdir", os.Mkdir(in, 0o755))
	s.ok("mount", unix.Mount("busy", in, "tmpfs", 0, ""))
	s.ok("write", os.WriteFile(filepath.Join(in, "precious"), []byte("x"), 0o644))
	err = s.Remove(s.ctx(), a.ID)
	if err == nil {
		s.Error("a snapshot with a mount in it was removed")
	}
	if _, err := os.Stat(filepath.Join(in, "precious")); err != nil {
		s.Errorf("a file in a mount was deleted: %v", err)
	}
	if _, err := os.Stat(filepath.Join(source, "g")); err != nil {
		s.Errorf("a refused removal deleted: %v", err)
	}
	s.ok("unmount", mount.Unmount(in))
	for range 2 {
		s.ok("remove", s.Remove(s.ctx(), a.ID))
	}
	s.ok("remove what never was", s.Remove(s.ctx(), 4711))
}

func directoryRemoved(s *suite) {
	low := s.layer(0, mkdir("d", 0o755), mkdir("d/sub", 0o755), write("d/sub/f", "1"), write("d/g", "1"))
	mid := s.layer(low, drop("d/sub"))
	s.sees(mid, "d/", "d/g 1")
	again := s.layer(mid, mkdir("d/sub", 0o700))
	s.sees(again, "d/", "d/g 1", "d/sub/")
	top := s.layer(low, drop("d"), write("d", "now a file"))
	s.sees(top, "d now a file")
	s.sees(s.layer(top, drop("d"), mkdir("d", 0o755)), "d/")
}

func (s *suite) owner(root, name string, uid, gid uint32) {
	s.Helper()
	var st unix.Stat_t
	s.ok("stat", unix.Lstat(filepath.Join(root, name), &st))
	if st.Uid != uid || st.Gid != gid {
		s.Errorf("%s belongs to %d:%d, want %d:%d", name, st.Uid, st.Gid, uid, gid)
	}
}

func (s *suite) mode(root, name string, want os.FileMode) {
	s.Helper()
	st, err := os.Lstat(filepath.Join(root, name))
	s.ok("stat", err)
	if got := st.Mode() &^ fs.ModeDir; got != want {
		s.Errorf("%q has mode %v, want %v", name, got, want)
	}
}

func chown(s *suite) {
	low := s.layer(0, mkdir("d", 0o755), write("d/f", "1"), symlink("f", "d/l"))
	mid := s.layer(low, chownTo("d", 1, 2), chownTo("d/f", 3, 4), chownTo("d/l", 5, 6))
	top := s.layer(mid, write("other", "x"))
	s.in(s.make(snapshot.View, top), func(root string) {
		s.owner(root, "d", 1, 2)
		s.owner(root, "d/f", 3, 4)
		s.owner(root, "d/l", 5, 6)
	})
	s.in(s.make(snapshot.View, low), func(root string) { s.owner(root, "d/f", 0, 0) })
}

func directoryMode(s *suite) {
	low := s.layer(0, mkdir("a", 0o700), mkdir("b", 0o777|fs.ModeSticky), mkdir("c", 0o750|fs.ModeSetgid))
	top := s.layer(low, chmod("a", 0o711))
	l := s.make(snapshot.View, top)
	s.in(l, func(root string) {
		s.mode(root, "a", 0o711)
		s.mode(root, "b", 0o777|fs.ModeSticky)
		s.mode(root, "c", 0o750|fs.ModeSetgid)
	})
}

func deletedInChild(s *suite) {
	low := s.layer(0, mkdir("d", 0o755), write("d/a", "1"), write("d/b", "1"), write("e", "1"))
	mid := s.layer(low, drop("d/a"), drop("e"))
	s.sees(mid, "d/", "d/b 1")
	s.sees(s.layer(mid, write("e", "back")), "d/", "d/b 1", "e back")
	s.sees(s.layer(s.layer(mid, drop("d")), mkdir("d", 0o755)), "d/")
}

func movedFromLower(s *suite) {
	low := s.layer(0, mkdir("dir1", 0o700), write("dir1/f1", "1"), write("dir1/f2", "2"))
	mid := s.layer(low, mkdir("dir2", 0o700), move("dir1/f1", "dir2/f1"))
	s.sees(mid, "dir1/", "dir1/f2 2", "dir2/", "dir2/f1 1")
	s.sees(s.layer(mid, write("dir2/f1", "new")), "dir1/", "dir1/f2 2", "dir2/", "dir2/f1 new")
}

func rename(s *suite) {
	low := s.layer(0, mkdir("d", 0o755), write("d/f", "1"), write("g", "g"))
	mid := s.layer(low, move("d", "moved"), move("g", "h"), mkdir("d", 0o755), write("d/new", "2"))
	s.sees(mid, "moved/", "moved/f 1", "h g", "d/", "d/new 2")
	s.sees(s.layer(mid, drop("moved"), move("d", "moved")), "moved/", "moved/new 2", "h g")
}

func viewReadOnly(s *suite) {
	low := s.layer(0, write("f", "1"))
	for _, parent := range []uint64{low, s.layer(low, write("g", "2"))} {
		s.in(s.make(snapshot.View, parent), func(root string) {
			for what, err := range map[string]error{
				"a file was made": os.WriteFile(filepath.Join(root, "new"), nil, 0o644),
				"a file was cut":  os.Truncate(filepath.Join(root, "f"), 0),
				"a mode changed":  os.Chmod(filepath.Join(root, "f"), 0o600),
			} {
				if !errors.Is(err, unix.EROFS) {
					s.Errorf("in a view %s: %v", what, err)
				}
			}
		})
	}
}

func viewOfNothing(s *suite) {
	s.in(s.make(snapshot.View, 0), func(root string) {
		s.holds(root)
		if err := os.Mkdir(filepath.Join(root, "d"), 0o755); !errors.Is(err, unix.EROFS) {
			s.Errorf("a view was written: %v", err)
		}
	})
}

func manyLayers(s *suite) {
	const n = 128
	var id uint64
	var want []string
	for i := range n {
		id = s.layer(id, write(fmt.Sprintf("f%d", i), fmt.Sprint(i)), write("same", fmt.Sprint(i)))
		want = append(want, fmt.Sprintf("f%d %d", i, i))
	}
	s.sees(id, append(want, fmt.Sprintf("same %d", n-1))...)
}

func rootAttributes(s *suite) {
	low := s.layer(0, chmod(".", 0o710|fs.ModeSticky), chownTo(".", 7, 8))
	check := func(id uint64, mode os.FileMode, uid, gid uint32) {
		s.Helper()
		for _, k := range []snapshot.Kind{snapshot.View, snapshot.Active} {
			s.in(s.make(k, id), func(root string) {
				s.mode(root, ".", mode)
				s.owner(root, ".", uid, gid)
			})
		}
	}
	check(low, 0o710|fs.ModeSticky, 7, 8)
	mid := s.layer(low, write("f", "1"))
	check(mid, 0o710|fs.ModeSticky, 7, 8)
	check(s.layer(mid, chmod(".", 0o701), chownTo(".", 0, 0)), 0o701, 0, 0)
	check(mid, 0o710|fs.ModeSticky, 7, 8)
	s.in(s.make(snapshot.Active, 0), func(root string) { s.mode(root, ".", 0o755) })
}

func makeAgain(s *suite) {
	low := s.layer(0, write("f", "1"))
	l := s.make(snapshot.Active, low)
	s.in(l, func(root string) { s.apply(root, write("half", "x"), drop("f")) })
	s.ok("make again", s.Make(s.ctx(), l))
	s.in(l, func(root string) { s.holds(root, "f 1") })
}

func reopened(s *suite) {
	low := s.layer(0, write("f", "1"))
	l := s.make(snapshot.Active, low)
	s.in(l, func(root string) { s.apply(root, write("g", "2")) })
	s.Driver = s.open(s.T, s.root)
	if s.Root() != s.root {
		s.Errorf("root is %s, want %s", s.Root(), s.root)
	}
	s.in(l, func(root string) { s.holds(root, "f 1", "g 2") })
	ids, err := s.List(s.ctx())
	if s.ok("list", err); !slices.Equal(ids, []uint64{low, l.ID}) {
		s.Errorf("listed %v", ids)
	}
}

func list(s *suite) {
	if ids, err := s.List(s.ctx()); err != nil || len(ids) != 0 {
		s.Errorf("an empty driver lists %v, %v", ids, err)
	}
	a := s.layer(0)
	b := s.make(snapshot.Active, a)
	c := s.make(snapshot.View, a)
	ids, err := s.List(s.ctx())
	if s.ok("list", err); !slices.Equal(ids, []uint64{a, b.ID, c.ID}) {
		s.Errorf("listed %v", ids)
	}
}

func usage(s *suite) {
	big := make([]byte, 1<<20)
	for i := range big {
		big[i] = byte(i * 7)
	}
	l := s.make(snapshot.Active, 0)
	before, err := s.Usage(s.ctx(), l)
	s.ok("usage", err)
	s.in(l, func(root string) {
		s.apply(root, write("a", string(big)), hardlink("a", "b"), hardlink("a", "c"), mkdir("d", 0o755))
	})
	after, err := s.Usage(s.ctx(), l)
	s.ok("usage", err)
	if n := after.Inodes - before.Inodes; n != 2 {
		s.Errorf("a file with three names and a directory are %d inodes, want 2", n)
	}
	if n := after.Size - before.Size; n < 1<<20 || n > 1<<20+64<<10 {
		s.Errorf("1 MiB with three names takes %d bytes", n)
	}
	l.Kind = snapshot.Committed
	sealed, err := s.Seal(s.ctx(), l)
	if s.ok("seal", err); sealed != after {
		s.Errorf("usage is %v when sealed, was %v", sealed, after)
	}
}

func sealTwice(s *suite) {
	low := s.layer(0, write("f", "1"))
	l := s.make(snapshot.Active, low)
	s.in(l, func(root string) { s.apply(root, write("g", "2"), chmod(".", 0o711)) })
	first, err := s.Seal(s.ctx(), snapshot.Layer{ID: l.ID, Kind: snapshot.Committed, Parents: l.Parents})
	s.ok("seal", err)
	second, err := s.Seal(s.ctx(), snapshot.Layer{ID: l.ID, Kind: snapshot.Committed, Parents: l.Parents})
	if s.ok("seal again", err); first != second {
		s.Errorf("usage is %v, then %v", first, second)
	}
	id := s.seal(l)
	s.in(s.make(snapshot.View, id), func(root string) { s.mode(root, ".", 0o711) })
	s.sees(id, "f 1", "g 2")
}
