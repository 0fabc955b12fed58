package shim

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestHoldBuriesOrphansAndEndsBySignal(t *testing.T) {
	if os.Getenv("BERTH_TEST_HOLD") != "" {
		// The shell ends at once and leaves an orphan, which ends a little later.
		if err := exec.Command("sh", "-c", "sleep 0.1 &").Run(); err != nil {
			os.Exit(3)
		}
		hold()
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run=TestHoldBuriesOrphansAndEndsBySignal")
	cmd.Env = append(os.Environ(), "BERTH_TEST_HOLD=1")
	// In a PID namespace it is the init that every orphan comes to.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(400 * time.Millisecond)
	if kids, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid)); err != nil || len(kids) > 0 {
		t.Errorf("children of hold: %q (%v), want none: the orphan is dead and must be buried", kids, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("hold ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatal("hold does not end by SIGTERM")
	}
}
