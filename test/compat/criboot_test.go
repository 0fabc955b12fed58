package compat

import (
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/lab"
)

// reboot ends everything as a power cut would, clears what a reboot clears, and
// starts the daemon with another boot id.
func (n *node) reboot(containers ...string) {
	n.t.Helper()
	var pids []int
	for _, id := range containers {
		r, err := n.rt().ContainerStatus(n.ctx, &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			n.t.Fatal(err)
		}
		var info struct{ Pid int }
		if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil || info.Pid <= 0 {
			n.t.Fatalf("pid of container %s: %d, %v", id, info.Pid, err)
		}
		pids = append(pids, info.Pid)
	}
	n.d.Kill()
	k := killing{node: n}
	for pid := k.someShim(); pid > 0; pid = k.someShim() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		time.Sleep(20 * time.Millisecond)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, left := range n.Ledger().Left() {
		switch left.Kind {
		case "mount", "netns":
			_ = unix.Unmount(left.Name, unix.MNT_DETACH)
		case "cgroup":
			lab.Until(n.t, 5*time.Second, left.Name+" is empty", func() bool { return unix.Rmdir(left.Name) != unix.EBUSY })
		}
	}
	if err := os.RemoveAll(n.d.State); err != nil {
		n.t.Fatal(err)
	}
	bin := filepath.Join(n.Dir, "rebooted")
	id := filepath.Join(bin, "boot_id")
	n.write(id, "11111111-2222-4333-8444-555555555555\n")
	n.write(filepath.Join(bin, "inner"), "#!/bin/sh\nmount --make-rprivate /proc\nmount --bind "+id+" /proc/sys/kernel/random/boot_id || exit 1\nexec "+filepath.Join(n.Bin, "berth")+" \"$@\"\n")
	// Only /proc is private: what shims mount must be seen by all.
	n.write(filepath.Join(bin, "berth"), "#!/bin/sh\nexec unshare --mount --propagation unchanged "+filepath.Join(bin, "inner")+" \"$@\"\n")
	for _, f := range []string{"inner", "berth"} {
		if err := os.Chmod(filepath.Join(bin, f), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	n.Bin = bin
	n.d.Start()
	n.dial()
}

// TestCRIReboot: after a reboot no pod is ready and no container runs, the addresses
// are free, and the kubelet's next request makes the pod anew.
func TestCRIReboot(t *testing.T) {
	n := newNode(t)
	pc := n.podConfig("before", cri.NamespaceMode_CONTAINER)
	pod := n.runPod(pc)
	id := n.create(pod, pc, n.containerConfig("c", "sleep 1000", cri.NamespaceMode_CONTAINER))
	n.start(id)
	n.reboot(id)
	t.Cleanup(n.removeAll)
	if st := n.podStatus(pod); st.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("pod after the reboot: %v", st)
	}
	if s := n.status(id); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 255 || s.GetReason() != "Unknown" || s.GetFinishedAt() == 0 {
		t.Errorf("container after the reboot: %v", s)
	}
	lab.Until(t, 10*time.Second, "the address is given back", func() bool {
		all, err := filepath.Glob(filepath.Join(n.ipam, "lab", "10.*"))
		return err == nil && len(all) == 0
	})
	again := n.runPod(pc) // the same attempt: a kubelet that has lost its memory
	if again == pod {
		t.Fatalf("the pod of the last boot is given as a new one")
	}
	next := n.create(again, pc, n.containerConfig("c", "exit 0", cri.NamespaceMode_CONTAINER))
	n.start(next)
	if s := n.ended(next); s.GetReason() != "Completed" {
		t.Errorf("container of the new boot: %v", s)
	}
}
