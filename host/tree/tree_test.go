package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRemoveDeep removes a chain of directories far deeper than handles or path
// names go, with files in it, and follows no link.
func TestRemoveDeep(t *testing.T) {
	dir := t.TempDir()
	keep := filepath.Join(dir, "keep")
	must(t, os.Mkdir(keep, 0o755))
	must(t, os.WriteFile(filepath.Join(keep, "f"), nil, 0o644))
	top := filepath.Join(dir, "top")
	must(t, os.Mkdir(top, 0o755))
	fd, err := OpenRoot(top)
	must(t, err)
	for i := range 5000 {
		must(t, unix.Symlinkat(keep, fd, "link"))
		must(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := OpenDir(fd, "d")
		must(t, err)
		if i%100 == 0 {
			must(t, unix.Mkdirat(fd, ".deep.1", 0)) // the name that removal itself uses
		}
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
	before := openFiles(t)
	must(t, RemovePath(top))
	if _, err := os.Lstat(top); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(keep, "f")); err != nil {
		t.Error(err)
	}
	if n := openFiles(t); n != before {
		t.Errorf("%d files open, %d before", n, before)
	}
	must(t, RemovePath(top))
	must(t, RemovePath(filepath.Join(dir, "no", "such")))
}

func openFiles(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func TestRemoveStopsAtMounts(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "top", "a", "mnt")
	must(t, os.MkdirAll(in, 0o755))
	must(t, unix.Mount("t", in, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(in, unix.MNT_DETACH)) })
	must(t, os.WriteFile(filepath.Join(in, "precious"), nil, 0o644))
	if err := RemovePath(filepath.Join(dir, "top")); !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EBUSY) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(in, "precious")); err != nil {
		t.Error(err)
	}
}

func TestCopy(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	in := func(s string) string { return filepath.Join(src, s) }
	must(t, os.Mkdir(in("d"), 0o700))
	must(t, os.Chmod(in("d"), 0o2751))
	must(t, os.WriteFile(in("d/f"), []byte(strings.Repeat("text ", 100000)), 0o644))
	must(t, os.Chown(in("d/f"), 3, 4))
	must(t, unix.Chmod(in("d/f"), 0o4711))
	must(t, unix.Setxattr(in("d/f"), "user.k", []byte("v"), 0))
	must(t, unix.Setxattr(in("d"), "trusted.overlay.opaque", []byte("y"), 0))
	must(t, os.Link(in("d/f"), in("g")))
	must(t, os.Symlink("/etc/passwd", in("l")))
	must(t, unix.Mkfifo(in("p"), 0o600))
	must(t, unix.Mknod(in("c"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	f, err := os.Create(in("sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("end"), 32<<20)
	must(t, err)
	must(t, f.Close())
	must(t, os.Chmod(src, 0o711))
	must(t, Copy(t.Context(), dst, src))
	for _, name := range []string{"", "d", "d/f", "g", "l", "p", "c", "sparse"} {
		var a, b unix.Stat_t
		must(t, unix.Lstat(in(name), &a))
		must(t, unix.Lstat(filepath.Join(dst, name), &b))
		show := func(s unix.Stat_t) string {
			return fmt.Sprintf("%o %d:%d %d %d n%d %d", s.Mode, s.Uid, s.Gid, s.Rdev, s.Mtim.Nano(), s.Nlink, s.Size)
		}
		if Format(a.Mode) == unix.S_IFDIR {
			a.Size, b.Size = 0, 0
		}
		if show(a) != show(b) {
			t.Errorf("%q is %s, want %s", name, show(b), show(a))
		}
		if name == "sparse" && b.Blocks > 1024 {
			t.Errorf("the hole was filled: %d blocks", b.Blocks)
		}
	}
	x, err := os.ReadFile(filepath.Join(dst, "d/f"))
	if err != nil || len(x) != 500000 {
		t.Errorf("%d bytes, %v", len(x), err)
	}
	v, err := GetXattr(unix.AT_FDCWD, "", "user.k")
	if err == nil {
		t.Errorf("attribute of a bad handle: %q", v)
	}
	fd, err := OpenRoot(dst)
	must(t, err)
	defer unix.Close(fd)
	list, err := Xattrs(fd, "g")
	if err != nil || len(list) != 1 || string(list[0].Value) != "v" {
		t.Errorf("attributes %v, %v", list, err)
	}
	if list, err = Xattrs(fd, "d"); err != nil || len(list) != 0 {
		t.Errorf("overlay's mark was copied: %v, %v", list, err)
	}
	if to, err := Readlink(fd, "l"); err != nil || to != "/etc/passwd" {
		t.Errorf("link to %q, %v", to, err)
	}
}

func TestOpenStays(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink("/etc", filepath.Join(dir, "l")))
	fd, err := OpenRoot(dir)
	must(t, err)
	defer unix.Close(fd)
	for name, want := range map[string]error{"l": unix.ELOOP, "l/passwd": unix.ELOOP, "..": unix.EXDEV, "/etc": unix.EXDEV} {
		if _, err := OpenDir(fd, name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}
