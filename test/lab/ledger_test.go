package lab

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLedgerSees makes one of each thing and finds it by name; what others have
// is not held against the test.
func TestLedgerSees(t *testing.T) {
	l := New(t)
	g := l.Ledger()
	name := l.Name("seen")
	short := "lg" + name[len(name)-8:]
	g.Own(short)
	for _, d := range []string{"state/s", "mnt", "ipam"} {
		if err := os.MkdirAll(filepath.Join(l.Dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g.OwnIPAM(filepath.Join(l.Dir, "ipam"))
	other := t.TempDir()

	sleeper := exec.Command("sleep", "1000")
	sleeper.Dir = l.Dir
	stranger := exec.Command("sleep", "1000")
	stranger.Dir = other
	for _, c := range []*exec.Cmd{sleeper, stranger} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	undo := []func(){func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() }}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	do := func(err error, back func()) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		undo = append(undo, back)
	}
	mnt := filepath.Join(l.Dir, "mnt")
	do(unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k"), func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	do(unix.Mount("tmpfs", other, "tmpfs", 0, "size=64k"), func() { _ = unix.Unmount(other, unix.MNT_DETACH) })
	group := filepath.Join(cgroups()[0], name)
	do(os.Mkdir(group, 0o755), func() { _ = os.Remove(group) })
	fifo := filepath.Join(l.Dir, "state", "out")
	do(unix.Mkfifo(fifo, 0o600), func() { _ = os.Remove(fifo) })
	sock, err := net.Listen("unix", filepath.Join(l.Dir, "state/s/x"))
	do(err, func() { _ = sock.Close() })
	do(os.WriteFile(filepath.Join(l.Dir, "ipam/10.107.9.9"), nil, 0o644), func() { _ = os.Remove(filepath.Join(l.Dir, "ipam/10.107.9.9")) })
	run := func(args ...string) error { return exec.Command("ip", args...).Run() }
	do(run("netns", "add", name), func() { _ = run("netns", "del", name) })
	do(run("link", "add", short, "type", "bridge"), func() { _ = run("link", "del", short) })
	do(run("link", "add", short+"v", "type", "veth", "peer", "name", short+"w"), func() { _ = run("link", "del", short+"v") })
	do(run("link", "set", short+"v", "master", short), func() {})

	want := []string{
		"address " + l.Dir + "/ipam/10.107.9.9", "cgroup " + group, "fifo " + fifo, "link " + short + "v on " + short,
		"mount " + mnt, "netns /run/netns/" + name, "process", "socket " + l.Dir + "/state/s/x",
	}
	var got []string
	for _, left := range g.Left() {
		text := left.String()
		if left.Kind == "process" {
			if !strings.Contains(text, "sleep 1000") {
				t.Errorf("unexpected %s", text)
			}
			text = "process"
		}
		got = append(got, text)
	}
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, fn := range slices.Backward(undo) {
		fn()
	}
	for _, left := range g.Wait(settle) {
		t.Errorf("still found: %s", left)
	}
}

func TestContainerID(t *testing.T) {
	if got := containerID([]byte{0x0a, 3, 'a', 'b', 'c', 0x12, 0}); got != "abc" {
		t.Errorf("%q", got)
	}
	for _, b := range [][]byte{nil, {0x0a}, {0x0a, 9, 'x'}, {0x12, 1, 'x'}} {
		if got := containerID(b); got != "" {
			t.Errorf("%v: %q", b, got)
		}
	}
}
