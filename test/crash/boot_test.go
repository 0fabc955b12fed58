package crash

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/lab"
)

// reboot ends everything as a power cut would, clears what a reboot clears, and
// starts the daemon as on a kernel of another boot: a wrapper gives it a mount
// namespace of its own, in which the kernel's boot id is another.
func (p *place) reboot() {
	p.t.Helper()
	pids := p.taskPids()
	p.d.Kill()
	p.killShims()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, left := range p.Ledger().Left() {
		switch left.Kind {
		case "mount":
			_ = unix.Unmount(left.Name, unix.MNT_DETACH)
		case "cgroup":
			lab.Until(p.t, 5*time.Second, left.Name+" is empty", func() bool { return os.Remove(left.Name) == nil || gone(left.Name) })
		}
	}
	if err := os.RemoveAll(p.d.State); err != nil {
		p.t.Fatal(err)
	}
	bin := filepath.Join(p.Dir, "rebooted")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		p.t.Fatal(err)
	}
	id := filepath.Join(bin, "boot_id")
	write(p.t, id, "11111111-2222-4333-8444-555555555555\n")
	script := "#!/bin/sh\nmount --make-rprivate /proc\nmount --bind " + id + " /proc/sys/kernel/random/boot_id || exit 1\nexec " +
		filepath.Join(p.Bin, "berth") + " \"$@\"\n"
	write(p.t, filepath.Join(bin, "inner"), script)
	// Only /proc is private: what shims mount must be seen by all.
	write(p.t, filepath.Join(bin, "berth"), "#!/bin/sh\nexec unshare --mount --propagation unchanged "+filepath.Join(bin, "inner")+" \"$@\"\n")
	p.Bin = bin
}

func gone(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestReboot boots under a running container and under an unfinished pull: what
// ran is torn down, what was promised is there, what was not is fetched again.
func TestReboot(t *testing.T) {
	p := newPlace(t, "")
	p.pull(p.busybox)
	id := p.Name("boot")
	p.d.MustCtr("run", "-d", p.busybox, id, "sh", "-c", "echo kept > /file; sleep 1000")
	lab.Until(t, 10*time.Second, "the container has written", func() bool {
		out, err := p.d.Ctr("tasks", "exec", "--exec-id", "look", id, "cat", "/file")
		return err == nil && strings.Contains(out, "kept")
	})
	p.interrupt(duration(func() { p.pull(p.layered) })/2, func() { _ = p.client("images", "pull", "--plain-http", p.layered) })
	p.d.Start()
	p.reboot()
	p.restart()
	if out := p.d.MustCtr("tasks", "ls", "-q"); strings.TrimSpace(out) != "" {
		t.Errorf("tasks of the last boot are still there: %s", out)
	}
	if out := p.d.MustCtr("containers", "ls", "-q"); strings.TrimSpace(out) != id {
		t.Errorf("containers after the reboot: %q, want %s", out, id)
	}
	p.d.MustCtr("tasks", "start", "-d", id)
	if out := p.d.MustCtr("tasks", "exec", "--exec-id", "look", id, "cat", "/file"); strings.TrimSpace(out) != "kept" {
		t.Errorf("the container's file after the reboot: %q", out)
	}
	p.d.MustCtr("tasks", "rm", "-f", id)
	p.d.MustCtr("containers", "rm", id)
	p.run(p.busybox, p.Name("again"))
	p.pull(p.layered)
	p.whole(p.Name("whole"))
	p.removeImage(p.busybox)
	p.removeImage(p.layered)
	p.giveUp()
	p.nothing(false)
}
