package shim

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/api/types/runc/options"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/sock"
)

// serve starts berth-shim without its start command, which is one program less for
// each container: the socket, which has the name that the command would choose, is
// made here and handed over. It reports false where that command is needed after
// all: a shim may be serving there already.
//
//	daemon ── fd 3: listening socket ─→ berth-shim serve
func (l *Launcher) serve(path string, p Params) (b Bootstrap, ok bool, err error) {
	if p.Group == "" || shimCgroup(p.Options) {
		return b, false, nil
	}
	sum := sha256.Sum256([]byte(filepath.Join(l.cfg.GRPCAddress, p.Namespace, p.Group)))
	at := filepath.Join(l.cfg.SocketDir, hex.EncodeToString(sum[:]))
	b = Bootstrap{Version: 3, Address: "unix://" + at, Protocol: "ttrpc"}
	// Before there is a socket or a shim: whoever cleans up must be able to find them.
	if err := os.WriteFile(filepath.Join(p.Bundle, "address"), []byte(b.Address), 0o600); err != nil {
		return b, false, fmt.Errorf("start berth-shim for container %q: %w", p.ID, err)
	}
	if err := os.MkdirAll(l.cfg.SocketDir, 0o700); err != nil {
		return b, false, fmt.Errorf("start berth-shim for container %q: %w", p.ID, err)
	}
	s, err := sock.Listen(at)
	if errors.Is(err, unix.EADDRINUSE) {
		return b, false, nil
	}
	if err != nil {
		return b, false, fmt.Errorf("start berth-shim for container %q: %w", p.ID, err)
	}
	err = l.launch(path, p, s.File())
	s.Close()
	if err != nil {
		_ = os.Remove(at) // nobody serves it
		return b, false, fmt.Errorf("start berth-shim for container %q: %w", p.ID, err)
	}
	return b, true, nil
}

// shimCgroup reports options that move the shim to a cgroup, which its start command
// does.
func shimCgroup(a spec.Any) bool {
	if a.Empty() {
		return false
	}
	var o options.Options
	return proto.Unmarshal(a.Value, &o) != nil || o.GetShimCgroup() != ""
}

func (l *Launcher) launch(path string, p Params, socket *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close() // of no more use once it is inherited
	args := []string{path, "serve", "-namespace", p.Namespace, "-id", p.ID, "-bundle", p.Bundle, "-address", l.cfg.GRPCAddress}
	if l.cfg.Debug {
		args = append(args, "-debug")
	}
	end := -1
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{
		Dir: "/", Env: l.serveEnviron(), Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), socket.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &end},
	})
	if err != nil {
		return err
	}
	oneStepUp(pid)
	bury(pid, end)
	return nil
}

// serveEnviron is our environment with what keeps a shim small: see shim/launch.go.
func (l *Launcher) serveEnviron() []string {
	var env []string
	for _, kv := range append(os.Environ(), l.cfg.Env...) {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "GOMAXPROCS", "GOGC", "GOMEMLIMIT", "GODEBUG", "TTRPC_ADDRESS", "MAX_SHIM_VERSION", "NOTIFY_SOCKET":
		default:
			env = append(env, kv)
		}
	}
	return append(env, "GOMAXPROCS=1", "GODEBUG=disablethp=1", "TTRPC_ADDRESS="+l.cfg.TTRPCAddress)
}

// oneStepUp makes the kernel prefer the shim to the daemon by one step when memory
// is short. Where that is forbidden the shim runs as it is.
func oneStepUp(pid int) {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return
	}
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(min(score+1, 1000))), 0)
}

// bury waits for a shim that is our child, so that it does not stay as a zombie. It
// takes no thread: its pidfd becomes readable when it ends (pidfd_open(2)).
func bury(pid, fd int) {
	wait := func() bool {
		n, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		return n != 0 || err != nil && err != syscall.EINTR
	}
	if fd < 0 || unix.SetNonblock(fd, true) != nil {
		fd = -1
	}
	// owner: the daemon's process, with which it ends; else it ends with the shim.
	go func() {
		if fd < 0 {
			_, _ = syscall.Wait4(pid, nil, 0, nil) // gone is what we want
			return
		}
		f := os.NewFile(uintptr(fd), "pidfd")
		defer f.Close()
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Read(func(uintptr) bool { return wait() })
		}
		if err != nil {
			_, _ = syscall.Wait4(pid, nil, 0, nil)
		}
	}()
}
