package shim

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/host/sock"
)

// dyingLimit is how long a killed shim may take to be gone: its sockets close
// before the kernel tells its children, and until then the runtime that it had
// started works on.
const dyingLimit = 2 * time.Second

// endOrphans waits for the end of a shim that is dying, and ends what of the
// runtime still works on the bundle, so that nothing is made after the cleaning up.
func endOrphans(bundle string) {
	for _, p := range processesOn(bundle) {
		if p.shim && servesStill(bundle) {
			continue // it lives, for other containers
		}
		fd, err := unix.PidfdOpen(p.pid, 0)
		if err != nil {
			continue
		}
		if !p.shim && onBundle(p.pid, bundle) == p {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // it may be dead by now
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(dyingLimit/time.Millisecond))
		_ = unix.Close(fd)
	}
}

func servesStill(bundle string) bool {
	data, err := os.ReadFile(filepath.Join(bundle, addressFile))
	if err != nil {
		return false
	}
	c, err := sock.Dial(strings.TrimPrefix(strings.TrimSpace(string(data)), "unix://"), connectLimit)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// bundleProcess is a shim or a runtime program at work on a bundle.
type bundleProcess struct {
	pid  int
	shim bool
}

// processesOn finds them by their command lines, shims first: their end ends most
// of the others.
func processesOn(bundle string) []bundleProcess {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var shims, others []bundleProcess
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		switch p := onBundle(pid, bundle); {
		case p.pid == 0:
		case p.shim:
			shims = append(shims, p)
		default:
			others = append(others, p)
		}
	}
	return append(shims, others...)
}

// onBundle looks for what only shims and host/runc write: "serve … -bundle BUNDLE",
// and "--log BUNDLE/…".
func onBundle(pid int, bundle string) bundleProcess {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil || !bytes.Contains(data, []byte(bundle)) {
		return bundleProcess{}
	}
	args := strings.Split(string(data), "\x00")
	for i := 1; i < len(args); i++ {
		switch {
		case args[i-1] == "-bundle" && args[i] == bundle && args[1] == "serve":
			return bundleProcess{pid, true}
		case args[i-1] == "--log" && strings.HasPrefix(args[i], bundle+"/"):
			return bundleProcess{pid, false}
		}
	}
	return bundleProcess{}
}
