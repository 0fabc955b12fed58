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
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/host/sock"
	"github.com/berthd/berth/shim/wire"
)

const (
	defaultSocketDir = "/run/containerd/s"
	connectLimit     = time.Second
)

// start finds the shim of the container's group or launches one, and answers on
// stdout how to reach it:
//
//	daemon ── start, stdin: BootstrapParams ─→ start ── fd 3: listening socket ─→ serve
//	daemon ←── stdout: BootstrapResult ─────── start                               │
//	daemon ──────────────────────── connect ──────────────────────────────────────→┘
//
// A daemon that sends BootstrapParams (containerd 2.3 and later) is answered with
// version 3. An older one sends the options, or nothing, and gets a plain address,
// which means version 2 to all of them.
func (f *flags) start() error {
	bundle, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find bundle: %w", err)
	}
	params, modern, err := f.readParams()
	if err != nil {
		return err
	}
	spec, err := readSpec(bundle)
	if errs.Ignore(err, os.ErrNotExist) != nil { // a sandbox may have none
		return err
	}
	path := socketPath(params.SocketDir, params.GRPCAddress, f.namespace, spec.group(f.id))
	address := "unix://" + path
	// Before there is a socket or a shim: whoever cleans up must be able to find them.
	if err := os.WriteFile(filepath.Join(bundle, addressFile), []byte(address), 0o600); err != nil {
		return fmt.Errorf("write address: %w", err)
	}
	l, err := listenOrJoin(path)
	if err != nil {
		return err
	}
	if l != nil {
		if err := f.launch(bundle, l, params); err != nil {
			l.Close()
			_ = os.Remove(path)
			return err
		}
	}
	out := []byte(address)
	if modern {
		out = (&wire.BootstrapResult{Version: 3, Address: address, Protocol: "ttrpc"}).Append(nil)
	}
	_, err = os.Stdout.Write(out)
	return err
}

// readParams reads stdin. modern says that it was a BootstrapParams.
func (f *flags) readParams() (p wire.BootstrapParams, modern bool, err error) {
	in, err := readInput()
	if err != nil {
		return p, false, err
	}
	p.GRPCAddress, p.TTRPCAddress = f.address, f.eventAddress
	var sent wire.BootstrapParams
	switch err := sent.Decode(in); {
	case err == nil && sent.InstanceID == f.id && sent.Namespace == f.namespace:
		if sent.GRPCAddress == "" {
			sent.GRPCAddress = p.GRPCAddress
		}
		if sent.TTRPCAddress == "" {
			sent.TTRPCAddress = p.TTRPCAddress
		}
		if sent.SocketDir == "" {
			sent.SocketDir = defaultSocketDir
		}
		return sent, true, nil
	case err == nil && sent.InstanceID != "" && !strings.Contains(sent.InstanceID, "."):
		// The first field of options is a type name, which has a dot.
		return p, false, errs.New(errs.InvalidArgument, "stdin is for container %s of namespace %s", sent.InstanceID, sent.Namespace)
	}
	p.SocketDir = defaultSocketDir
	var options wire.Any
	if len(in) > 0 {
		if err := options.Decode(in); err != nil {
			return p, false, errs.New(errs.InvalidArgument, "read stdin: %v", err)
		}
		p.Extensions = []wire.Any{options}
	}
	return p, false, nil
}

// socketPath is the rule that containerd's shims follow: one path for each daemon,
// namespace and group.
func socketPath(dir, grpcAddress, namespace, group string) string {
	sum := sha256.Sum256([]byte(filepath.Join(grpcAddress, namespace, group)))
	return filepath.Join(dir, hex.EncodeToString(sum[:]))
}

// listenOrJoin makes the group's socket. It returns nil if a shim serves it already.
// A socket that a dead shim left is replaced.
func listenOrJoin(path string) (*sock.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make socket directory: %w", err)
	}
	l, err := sock.Listen(path)
	if err == nil || !errors.Is(err, unix.EADDRINUSE) {
		return l, err
	}
	if c, err := sock.Dial(path, connectLimit); err == nil {
		_ = c.Close()
		return nil, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove socket of a dead shim: %w", err)
	}
	return sock.Listen(path)
}

// launch starts this program again to serve, so that it outlives the daemon: in a
// session of its own, with nothing of ours open but the socket.
func (f *flags) launch(bundle string, l *sock.Listener, p wire.BootstrapParams) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	args := []string{self, "serve", "-namespace", f.namespace, "-id", f.id, "-bundle", bundle, "-address", p.GRPCAddress}
	if f.debug {
		args = append(args, "-debug")
	}
	pid, err := syscall.ForkExec(self, args, &syscall.ProcAttr{
		Dir:   "/",
		Env:   serveEnviron(p.TTRPCAddress),
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), l.File().Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("launch shim: %w", err)
	}
	adjustOOMScore(os.Getppid(), pid)
	for _, e := range p.Extensions {
		options, err := readOptions(e)
		if err == nil && options.ShimCgroup != "" {
			err = cgroup.System.Join(options.ShimCgroup, pid)
		}
		if err != nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return fmt.Errorf("launch shim: %w", err)
		}
	}
	return nil
}

// serveEnviron is our environment with what keeps a shim small: a processor takes
// memory in Go whether it is used or not, and a heap of a few hundred kilobytes has
// no use for huge pages. Runtimes do not get these (host/runc).
func serveEnviron(eventAddress string) []string {
	var env []string
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "GOMAXPROCS", "GOGC", "GOMEMLIMIT", "GODEBUG", "TTRPC_ADDRESS", "MAX_SHIM_VERSION":
		default:
			env = append(env, kv)
		}
	}
	return append(env, "GOMAXPROCS=1", "GODEBUG=disablethp=1", "TTRPC_ADDRESS="+eventAddress)
}

// adjustOOMScore makes the kernel prefer the shim to the daemon by one step. To
// raise it is always allowed; where a container manager forbids even that, the
// shim runs as it is.
func adjustOOMScore(parent, pid int) {
	name := func(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/oom_score_adj" }
	data, err := os.ReadFile(name(parent))
	if err != nil {
		return
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return
	}
	_ = os.WriteFile(name(pid), []byte(strconv.Itoa(min(score+1, 1000))), 0)
}
