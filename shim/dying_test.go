package shim

import (
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// TestEndOrphans: a runtime that works on the bundle is ended, one that works on
// another and a program that only names the bundle are not.
func TestEndOrphans(t *testing.T) {
	bundle := t.TempDir()
	start := func(args ...string) (ended chan struct{}) {
		// The arguments behind the script are only there to be seen.
		cmd := exec.Command("sh", append([]string{"-c", "sleep 1000 & wait"}, args...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended = make(chan struct{})
		// owner: the cleanup waits for it.
		go func() { _ = cmd.Wait(); close(ended) }()
		t.Cleanup(func() {
			_ = exec.Command("pkill", "-P", strconv.Itoa(cmd.Process.Pid)).Run()
			_ = cmd.Process.Kill()
			<-ended
		})
		return ended
	}
	ours := start("runc", "--root", bundle+"/runtime-state", "--log", bundle+"/log.json", "create", "--bundle", bundle, "x")
	others := start("runc", "--log", bundle+"2/log.json", "create")
	reader := start("cat", bundle+"/log.json")
	endOrphans(bundle)
	select {
	case <-ours:
	case <-time.After(5 * time.Second):
		t.Error("the runtime that works on the bundle lives")
	}
	for _, c := range []chan struct{}{others, reader} {
		select {
		case <-c:
			t.Error("a program that does not work on the bundle was ended")
		default:
		}
	}
}
