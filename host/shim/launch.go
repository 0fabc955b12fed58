package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

// Config is what every shim of this daemon is told.
type Config struct {
	GRPCAddress  string // path of the daemon's socket
	TTRPCAddress string // path of the socket that takes events
	SocketDir    string // where shims put their sockets, as /run/berth/s
	OwnBinary    string // path of berth-shim; "" finds it
	Env          []string
	Version      string // the daemon's
	Debug        bool
	Log          *slog.Logger
}

// Launcher starts shim programs.
type Launcher struct {
	cfg  Config
	self string
}

// NewLauncher returns a launcher.
func NewLauncher(cfg Config) (*Launcher, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return &Launcher{cfg: cfg, self: self}, nil
}

// Params name the container for which a shim is wanted.
type Params struct {
	Namespace string
	ID        string
	Bundle    string // working directory of the program; holds config.json
	Runtime   string // runtime type or absolute path
	Options   spec.Any
	Group     string // of containers that share a shim; "" is not known
}

func (l *Launcher) command(ctx context.Context, path string, p Params, extra ...string) *exec.Cmd {
	args := append([]string{"-namespace", p.Namespace, "-address", l.cfg.GRPCAddress, "-publish-binary", l.self, "-id", p.ID}, extra...)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = p.Bundle
	cmd.Env = append(append(os.Environ(), "GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "TTRPC_ADDRESS="+l.cfg.TTRPCAddress, "GRPC_ADDRESS="+l.cfg.GRPCAddress,
		"NAMESPACE="+p.Namespace), l.cfg.Env...)
	// A shim that was started by `start` keeps what it inherits; waiting for
	// its copy of our pipes would wait for its whole life.
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Start runs the shim's start command, which answers how to reach it: a new shim,
// or the one that serves the container's group already.
func (l *Launcher) Start(ctx context.Context, p Params) (Bootstrap, error) {
	path, err := l.binary(p.Runtime)
	if err != nil {
		return Bootstrap{}, err
	}
	if p.Runtime == OwnRuntime {
		if b, ok, err := l.serve(path, p); ok || err != nil {
			return b, err
		}
	}
	var extra []string
	if l.cfg.Debug {
		extra = append(extra, "-debug")
	}
	cmd := l.command(ctx, path, p, append(extra, "start")...)
	in, err := l.startInput(path, p)
	if err != nil {
		return Bootstrap{}, err
	}
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return Bootstrap{}, fmt.Errorf("start %s for container %q: %w: %s", filepath.Base(path), p.ID, err, excerpt(out))
	}
	b, err := parseBootstrap(out)
	if err != nil {
		return Bootstrap{}, fmt.Errorf("start %s for container %q: %w", filepath.Base(path), p.ID, err)
	}
	return b, nil
}

// startInput is what a shim reads on stdin: the bootstrap message since
// containerd 2.3, which carries the runtime's options.
func (l *Launcher) startInput(path string, p Params) ([]byte, error) {
	base := filepath.Base(path)
	if strings.Contains(base, "shim-runc-v1") || strings.Contains(base, "shim-runhcs-v1") {
		if p.Options.Empty() {
			return nil, nil
		}
		return proto.Marshal(toAny(p.Options))
	}
	m := &bootstrap.BootstrapParams{
		InstanceID: p.ID, Namespace: p.Namespace, ContainerdVersion: l.cfg.Version, ContainerdTtrpcAddress: l.cfg.TTRPCAddress,
		ContainerdGrpcAddress: l.cfg.GRPCAddress, ContainerdBinary: l.self, SocketDir: &l.cfg.SocketDir,
	}
	if l.cfg.Debug {
		m.LogLevel = bootstrap.LogLevel_LOG_LEVEL_DEBUG
	}
	if !p.Options.Empty() {
		m.Extensions = append(m.Extensions, &bootstrap.Extension{Value: toAny(p.Options)})
	}
	return proto.Marshal(m)
}

// parseBootstrap reads the three forms of the answer, newest first: a protobuf
// message, a JSON object, and a plain address, which means version 2 over ttrpc.
func parseBootstrap(out []byte) (Bootstrap, error) {
	text := strings.TrimSpace(string(out))
	if strings.HasPrefix(text, "{") {
		var b Bootstrap
		if err := json.Unmarshal([]byte(text), &b); err != nil {
			return b, errs.New(errs.Internal, "the shim's answer %q: %v", excerpt(out), err)
		}
		if b.Version > 3 {
			return b, errs.New(errs.Unimplemented, "the shim speaks version %d, known are 2 and 3", b.Version)
		}
		return b, nil
	}
	if strings.HasPrefix(text, "/") || strings.Contains(text, "://") && text[0] > ' ' {
		if strings.ContainsAny(text, "\n \x00") {
			return Bootstrap{}, errs.New(errs.Internal, "the shim's answer is not an address: %q", excerpt(out))
		}
		return Bootstrap{Version: 2, Address: text, Protocol: "ttrpc"}, nil
	}
	var m bootstrap.BootstrapResult
	if err := proto.Unmarshal(out, &m); err != nil || m.GetAddress() == "" {
		return Bootstrap{}, errs.New(errs.Internal, "the shim's answer is not understood: %q", excerpt(out))
	}
	return Bootstrap{Version: int(m.GetVersion()), Address: m.GetAddress(), Protocol: m.GetProtocol()}, nil
}

func excerpt(out []byte) string {
	text := strings.TrimSpace(string(out))
	if len(text) > 2000 {
		text = text[:2000] + "…"
	}
	return text
}

// Delete runs the shim's delete command: it ends and removes whatever a dead shim
// left of a container, and says how its init ended.
func (l *Launcher) Delete(ctx context.Context, p Params) (Exit, error) {
	path, err := l.binary(p.Runtime)
	if err != nil {
		return Exit{}, err
	}
	cmd := l.command(ctx, path, p, "-bundle", p.Bundle, "delete")
	if _, err := os.Stat(p.Bundle); err != nil {
		cmd.Dir = "/"
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return Exit{}, fmt.Errorf("clean up after container %q with %s: %w: %s", p.ID, filepath.Base(path), err, excerpt(errOut.Bytes()))
	}
	var r task.DeleteResponse
	if err := proto.Unmarshal(out.Bytes(), &r); err != nil {
		return Exit{}, fmt.Errorf("clean up after container %q with %s: its answer: %w", p.ID, filepath.Base(path), err)
	}
	return Exit{r.GetPid(), r.GetExitStatus(), r.GetExitedAt().AsTime()}, nil
}

// Info asks a runtime's shim what it can do.
func (l *Launcher) Info(ctx context.Context, runtime string, options spec.Any) (*types.RuntimeInfo, error) {
	path, err := l.binary(runtime)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, "-info")
	if !options.Empty() {
		in, err := proto.Marshal(toAny(options))
		if err != nil {
			return nil, err
		}
		cmd.Stdin = bytes.NewReader(in)
	}
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			out = ee.Stderr
		}
		return nil, fmt.Errorf("ask %s what it can do: %w: %s", filepath.Base(path), err, excerpt(out))
	}
	var info types.RuntimeInfo
	if err := proto.Unmarshal(out, &info); err != nil {
		return nil, fmt.Errorf("ask %s what it can do: its answer: %w", filepath.Base(path), err)
	}
	return &info, nil
}
