package facts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCaps(t *testing.T) {
	caps, err := Caps()
	if err != nil || len(caps) == 0 {
		t.Fatalf("%v, %v", caps, err)
	}
	var mask uint64
	for _, c := range caps {
		mask |= 1 << slices.Index(CapNames(), c)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("CapBnd:\t%016x", mask); !strings.Contains(string(status), want) {
		t.Errorf("the kernel does not say %q", want)
	}
}

func TestDevices(t *testing.T) {
	d, err := Device("/dev/null")
	if err != nil || d.Type != "c" || d.Major != 1 || d.Minor != 3 || d.FileMode.Perm() != 0o666 {
		t.Errorf("/dev/null: %+v, %v", d, err)
	}
	dir := t.TempDir()
	link := filepath.Join(dir, "zero")
	if err := os.Symlink("/dev/zero", link); err != nil {
		t.Fatal(err)
	}
	if d, err := Device(link); err != nil || d.Minor != 5 || d.Path != link {
		t.Errorf("by a link: %+v, %v", d, err)
	}
	if _, err := Device(dir); err == nil {
		t.Error("a directory is a device")
	}
	if err := unix.Mknod(filepath.Join(dir, "a"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 7))); err != nil {
		t.Fatal(err)
	}
	all, err := Devices(dir)
	if err != nil || len(all) != 1 || all[0].Minor != 7 {
		t.Errorf("in a directory: %+v, %v", all, err)
	}
	all, err = Devices("/dev")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if strings.HasPrefix(d.Path, "/dev/pts/") || strings.HasPrefix(d.Path, "/dev/shm/") {
			t.Errorf("%s is each container's own", d.Path)
		}
	}
}

func TestPropagation(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("t", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flag          uintptr
		shared, slave bool
	}{{unix.MS_PRIVATE, false, false}, {unix.MS_SHARED, true, false}} {
		if err := unix.Mount("", dir, "", c.flag, ""); err != nil {
			t.Fatal(err)
		}
		p, err := PropagationOf(sub)
		if err != nil || p.Shared != c.shared || p.Slave != c.slave || p.Mount != dir {
			t.Errorf("%#x: %+v, %v", c.flag, p, err)
		}
	}
	if _, err := PropagationOf(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
	p, id := parseMountinfo("36 35 98:0 / /mnt rw shared:1 master:2 - ext3 /dev/root rw,shared:9")
	if id != 36 || !p.Shared || !p.Slave || p.Mount != "/mnt" {
		t.Errorf("%+v %d", p, id)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add("36 35 98:0 / /mnt rw shared:1 - ext3 /dev/root rw")
	f.Fuzz(func(t *testing.T, line string) { parseMountinfo(line) })
}
