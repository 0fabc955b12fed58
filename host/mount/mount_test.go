package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// place is a directory with a tree to mount and a target; at the end nothing may
// be mounted below it.
func ground(t *testing.T) (dir, target string) {
	dir = t.TempDir()
	for _, d := range []string{"src/sub", "target", "low", "up", "work"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "src/f"), []byte("src"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "low/f"), []byte("low"), 0o644))
	t.Cleanup(func() {
		left, err := Points(dir)
		must(t, err)
		if len(left) > 0 {
			t.Errorf("left mounted: %v", left)
		}
		for _, p := range slices.Backward(left) {
			must(t, Detach(p))
		}
	})
	return dir, filepath.Join(dir, "target")
}

func bindOf(source string, options ...string) spec.Mount {
	return spec.Mount{Type: "bind", Source: source, Options: options}
}

func flagsOf(t *testing.T, path string) int64 {
	var st unix.Statfs_t
	must(t, unix.Statfs(path, &st))
	return int64(st.Flags) //nolint:unconvert // another type on 32 bits
}

func TestBind(t *testing.T) {
	dir, target := ground(t)
	cases := []struct {
		options  []string
		flags    int64
		writable bool
	}{
		{[]string{"rbind", "rw"}, 0, true},
		{[]string{"rbind", "ro"}, unix.ST_RDONLY, false},
		{[]string{"bind", "ro", "rw"}, 0, true},
		{[]string{"bind", "nosuid", "nodev", "noexec", "noatime"}, unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NOATIME, true},
		{[]string{"bind", "ro", "nosuid", "suid", "relatime", "X-mine=1", "x-other", "nofail", "comment=x"}, unix.ST_RDONLY, false},
	}
	for _, c := range cases {
		must(t, All([]spec.Mount{bindOf(filepath.Join(dir, "src"), c.options...)}, target))
		got := flagsOf(t, target) & (unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NOATIME)
		if got != c.flags {
			t.Errorf("%v: flags %#x, want %#x", c.options, got, c.flags)
		}
		err := os.WriteFile(filepath.Join(target, "new"), nil, 0o644)
		if (err == nil) != c.writable {
			t.Errorf("%v: write gives %v", c.options, err)
		}
		must(t, Unmount(target))
	}
	if flagsOf(t, dir)&unix.ST_RDONLY != 0 {
		t.Error("the source became read-only")
	}
}

func TestBindFileInside(t *testing.T) {
	dir, target := ground(t)
	must(t, os.MkdirAll(filepath.Join(dir, "src/etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "src/etc/hosts"), []byte("old"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "hosts"), []byte("new"), 0o644))
	inside := bindOf(filepath.Join(dir, "hosts"), "bind", "ro")
	inside.Target = "/etc/hosts"
	must(t, All([]spec.Mount{bindOf(filepath.Join(dir, "src"), "rbind"), inside}, target))
	data, err := os.ReadFile(filepath.Join(target, "etc/hosts"))
	if err != nil || string(data) != "new" {
		t.Errorf("read %q, %v", data, err)
	}
	if err := os.WriteFile(filepath.Join(target, "etc/hosts"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("a read-only file was written: %v", err)
	}
	must(t, Unmount(filepath.Join(target, "etc/hosts")))
	must(t, Unmount(target))
}

// TestTargetStaysInside: links in the root lead nowhere else.
func TestTargetStaysInside(t *testing.T) {
	dir, target := ground(t)
	outside := filepath.Join(dir, "outside")
	must(t, os.Mkdir(outside, 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, "src", outside), 0o755)) // what an absolute link means inside
	must(t, os.Mkdir(filepath.Join(dir, "src/outside"), 0o755))
	must(t, os.Symlink(outside, filepath.Join(dir, "src/absolute")))
	must(t, os.Symlink("../../../../outside", filepath.Join(dir, "src/relative")))
	must(t, os.Symlink("/proc/self/cwd", filepath.Join(dir, "src/magic")))
	for _, sub := range []string{"absolute", "relative", "../../../outside"} {
		in := bindOf(filepath.Join(dir, "low"), "bind", "ro")
		in.Target = sub
		must(t, All([]spec.Mount{bindOf(filepath.Join(dir, "src"), "rbind"), in}, target))
		points, err := Points(dir)
		must(t, err)
		if len(points) != 2 || !strings.HasPrefix(points[1], target+"/") {
			t.Errorf("%s: mounted at %v", sub, points)
		}
		must(t, Detach(target))
	}
	for _, sub := range []string{"magic", "missing"} {
		in := bindOf(filepath.Join(dir, "low"), "bind")
		in.Target = sub
		err := All([]spec.Mount{bindOf(filepath.Join(dir, "src"), "rbind"), in}, target)
		if err == nil || !strings.Contains(err.Error(), sub) {
			t.Errorf("%s: %v", sub, err)
		}
		if points, _ := Points(target); len(points) != 0 {
			t.Errorf("%s: the first mount was not undone: %v", sub, points)
		}
	}
}

func TestUndo(t *testing.T) {
	dir, target := ground(t)
	err := All([]spec.Mount{
		bindOf(filepath.Join(dir, "src"), "rbind"),
		{Type: "tmpfs", Source: "t", Target: "sub", Options: []string{"size=1m", "mode=700"}},
		{Type: "nosuchfs", Source: "x", Options: []string{"a=b", "ro"}},
	}, target)
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), `nosuchfs "x" on `+target+" with a=b,ro") {
		t.Errorf("error is %v", err)
	}
	if points, _ := Points(dir); len(points) != 0 {
		t.Errorf("left: %v", points)
	}
}

func TestPropagation(t *testing.T) {
	dir, target := ground(t)
	for option, want := range map[string]string{"rprivate": "", "rshared": "shared:", "rslave": "", "unbindable": "unbindable"} {
		must(t, All([]spec.Mount{bindOf(filepath.Join(dir, "src"), "rbind", option)}, target))
		table, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); f[4] == target {
				tags := strings.Join(f[6:slices.Index(f, "-")], " ")
				if want == "" && strings.Contains(tags, "shared:") || !strings.Contains(tags, want) {
					t.Errorf("%s: tags %q", option, tags)
				}
			}
		}
		must(t, Unmount(target))
	}
}

// layers makes n layers below dir and returns the option for them.
func layers(t *testing.T, dir string, n int) string {
	var list []string
	for i := range n {
		l := filepath.Join(dir, "layer-with-a-long-name-"+fmt.Sprint(i), "fs")
		must(t, os.MkdirAll(l, 0o755))
		must(t, os.WriteFile(filepath.Join(l, fmt.Sprintf("f%d", i)), nil, 0o644))
		must(t, os.Chown(filepath.Join(l, fmt.Sprintf("f%d", i)), 7, 8))
		list = append(list, l)
	}
	return "lowerdir=" + strings.Join(list, ":")
}

func sees(t *testing.T, target string, n int, uid, gid uint32) {
	t.Helper()
	list, err := os.ReadDir(target)
	must(t, err)
	if len(list) != n {
		t.Errorf("%d files, want %d", len(list), n)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(target, "f0"), &st))
	if st.Uid != uid || st.Gid != gid {
		t.Errorf("f0 belongs to %d:%d, want %d:%d", st.Uid, st.Gid, uid, gid)
	}
}

// TestOverlay mounts few and many layers, plain and mapped, writable and not, by
// each of the ways that kernels offer.
func TestOverlay(t *testing.T) {
	dir, target := ground(t)
	rw := []string{"upperdir=" + filepath.Join(dir, "up"), "workdir=" + filepath.Join(dir, "work")}
	ids := []string{"uidmap=0:100000:65536", "gidmap=0:200000:65536"}
	for _, n := range []int{2, 128} {
		list := layers(t, filepath.Join(dir, fmt.Sprint("many", n)), n)
		for _, mapped := range []bool{false, true} {
			for _, extra := range [][]string{rw, {"ro"}} {
				opts := append([]string{list, "index=off"}, extra...)
				uid, gid := uint32(7), uint32(8)
				if mapped {
					opts, uid, gid = append(opts, ids...), 100007, 200008
				}
				must(t, All([]spec.Mount{{Type: "overlay", Source: "overlay", Options: opts}}, target))
				sees(t, target, n, uid, gid)
				must(t, Unmount(target))
			}
		}
		lower, rest := splitLower([]string{list})
		base := shared(lower)
		must(t, overlayFrom(base, "overlay", unix.MS_RDONLY, rest, relative(base, lower), target))
		sees(t, target, n, 7, 8)
		must(t, Unmount(target))
		o, err := parse(ids)
		must(t, err)
		fd, err := o.ids.mapped(base, false)
		must(t, err)
		must(t, overlayMappedAt(fd, "overlay", 0, nil, relative(base, lower), target))
		must(t, unix.Close(fd))
		sees(t, target, n, 100007, 200008)
		must(t, Unmount(target))
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "berth-idmap-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestBindMapped(t *testing.T) {
	dir, target := ground(t)
	m := bindOf(filepath.Join(dir, "src"), "rbind", "ro", "uidmap=0:100000:10,10:5000:10", "gidmap=0:100000:65536")
	must(t, All([]spec.Mount{m}, target))
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(target, "f"), &st))
	if st.Uid != 100000 || flagsOf(t, target)&unix.ST_RDONLY == 0 {
		t.Errorf("owner %d, flags %#x", st.Uid, flagsOf(t, target))
	}
	must(t, Unmount(target))
	for _, bad := range [][]string{{"uidmap=0:1:1"}, {"uidmap=x", "gidmap=0:1:1"}, {"uidmap=0:1:0", "gidmap=0:1:1"}, {"uidmap=4294967295:0:2", "gidmap=0:1:1"}, {"uidmap=0:-1:1", "gidmap=0:1:1"}} {
		if err := All([]spec.Mount{bindOf(filepath.Join(dir, "src"), bad...)}, target); !errors.Is(err, errs.InvalidArgument) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestLoop(t *testing.T) {
	dir, target := ground(t)
	img := filepath.Join(dir, "img")
	must(t, os.WriteFile(img, nil, 0o644))
	must(t, os.Truncate(img, 8<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", img).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	must(t, All([]spec.Mount{{Type: "ext4", Source: img, Options: []string{"loop", "rw"}}}, target))
	must(t, os.WriteFile(filepath.Join(target, "f"), []byte("x"), 0o644))
	must(t, Unmount(target))
	must(t, All([]spec.Mount{{Type: "ext4", Source: img, Options: []string{"loop", "ro"}}}, target))
	if _, err := os.Stat(filepath.Join(target, "f")); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(target, "f")); !errors.Is(err, unix.EROFS) {
		t.Errorf("a read-only loop mount was written: %v", err)
	}
	must(t, Unmount(target))
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, err := exec.Command("losetup", "-j", img).Output()
		must(t, err)
		if len(out) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the loop device stays: %s", out)
		}
	}
}

// TestFuse has a script stand in for the program, which no test machine has.
func TestFuse(t *testing.T) {
	dir, target := ground(t)
	script := "#!/bin/sh\necho \"$@\" >" + dir + "/args\n"
	must(t, os.WriteFile(filepath.Join(dir, "mount.fuse3"), []byte(script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	must(t, All([]spec.Mount{{Type: "fuse3.sshfs", Source: "host:/x", Options: []string{"allow_other", "ro"}}}, target))
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	must(t, err)
	if want := "host:/x " + target + " -o allow_other -o ro -t sshfs\n"; string(args) != want {
		t.Errorf("called with %q, want %q", args, want)
	}
	if err := All([]spec.Mount{{Type: "fuse3.x", Source: "--help"}}, target); !errors.Is(err, errs.InvalidArgument) {
		t.Errorf("a source that is an option: %v", err)
	}
}

func TestUnmount(t *testing.T) {
	dir, target := ground(t)
	must(t, Unmount(target))
	must(t, Unmount(filepath.Join(dir, "missing")))
	for range 3 {
		must(t, All([]spec.Mount{bindOf(filepath.Join(dir, "src"), "bind")}, target))
	}
	must(t, Unmount(target))
	if p, _ := Points(target); len(p) != 0 {
		t.Errorf("left: %v", p)
	}
	must(t, All([]spec.Mount{bindOf(filepath.Join(dir, "src"), "bind")}, target))
	link := filepath.Join(dir, "link")
	must(t, os.Symlink(target, link))
	must(t, Unmount(link))
	if p, _ := Points(target); len(p) != 1 {
		t.Error("a link was followed")
	}
	f, err := os.Open(filepath.Join(target, "f"))
	must(t, err)
	if err := Unmount(target); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a busy mount gives %v", err)
	}
	must(t, Detach(target))
	must(t, f.Close())
}

func TestTemp(t *testing.T) {
	dir, _ := ground(t)
	boom := errors.New("boom")
	var seen string
	opts := []string{"volatile", "lowerdir=" + filepath.Join(dir, "low"), "upperdir=" + filepath.Join(dir, "up"), "workdir=" + filepath.Join(dir, "work")}
	for range 2 { // volatile would forbid the second time
		err := Temp(t.Context(), []spec.Mount{{Type: "overlay", Source: "o", Options: opts}}, func(root string) error {
			seen = root
			must(t, os.WriteFile(filepath.Join(root, "new"), nil, 0o644))
			return boom
		})
		if !errors.Is(err, boom) {
			t.Errorf("error %v", err)
		}
	}
	if _, err := os.Stat(seen); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s stays: %v", seen, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "up/new")); err != nil {
		t.Error(err)
	}
}

func TestReadOnly(t *testing.T) {
	dir, target := ground(t)
	must(t, os.WriteFile(filepath.Join(dir, "up/new"), nil, 0o644))
	in := []spec.Mount{{Type: "overlay", Source: "overlay", Options: []string{"index=off", "volatile", "workdir=" + filepath.Join(dir, "work"),
		"upperdir=" + filepath.Join(dir, "up"), "lowerdir=" + filepath.Join(dir, "low")}}}
	for _, m := range [][]spec.Mount{in, {bindOf(filepath.Join(dir, "up"), "rbind", "rw")}} {
		before := fmt.Sprint(m)
		must(t, All(ReadOnly(m), target))
		if _, err := os.Stat(filepath.Join(target, "new")); err != nil {
			t.Error(err)
		}
		if err := os.Remove(filepath.Join(target, "new")); !errors.Is(err, unix.EROFS) {
			t.Errorf("written: %v", err)
		}
		must(t, Unmount(target))
		if fmt.Sprint(m) != before {
			t.Error("the argument was changed")
		}
	}
}

func TestPoints(t *testing.T) {
	table := `36 35 98:0 / /a rw - ext3 /dev/root rw
37 36 98:0 /mnt1 /a/with\040space\134and\011tab rw,noatime master:1 - ext3 /dev/root rw,errors=continue
38 36 98:0 / /ab rw - ext3 x rw
39 36 98:0 / /a rw - tmpfs x rw
broken
`
	for prefix, want := range map[string][]string{
		"/a":  {"/a", "/a/with space\\and\ttab", "/a"},
		"/":   {"/a", "/a/with space\\and\ttab", "/ab", "/a"},
		"/ab": {"/ab"}, "/b": nil,
	} {
		if got := points([]byte(table), prefix); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", prefix, got, want)
		}
	}
}

func FuzzPoints(f *testing.F) {
	f.Add([]byte(`37 36 98:0 /mnt1 /a/with\040space\134 rw - ext3 /dev/root rw`))
	f.Fuzz(func(t *testing.T, data []byte) { points(data, "/") })
}
