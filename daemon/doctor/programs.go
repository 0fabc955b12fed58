package doctor

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/daemon/config"
	"github.com/berthd/berth/host/cni"
	"github.com/berthd/berth/host/shim"
)

// askTime is how long one program may take to say what it is.
const askTime = 5 * time.Second

func (v *visit) programs(ctx context.Context) {
	cfg := v.Config.Config
	l, err := shim.NewLauncher(shim.Config{OwnBinary: cfg.Berth.Shim, Log: v.Log})
	if err != nil {
		v.fail("berth-shim", "", "%v", err)
		return
	}
	own, err := l.Own()
	if err == nil {
		_, err = os.Stat(own)
	}
	if err != nil {
		v.fail("berth-shim", "install berth-shim beside berth", "%v", err)
	} else {
		v.ok("berth-shim", "%s", own)
	}
	runtimes := cfg.Plugins.Runtime.Containerd.Runtimes
	for _, name := range slices.Sorted(maps.Keys(runtimes)) {
		v.runtime(ctx, l, name, runtimes[name])
	}
}

func (v *visit) runtime(ctx context.Context, l *shim.Launcher, name string, h config.Handler) {
	about := "runtime " + name
	bad := v.warn
	if name == v.Config.Config.Plugins.Runtime.Containerd.Default {
		bad = v.fail
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if h.BaseSpec != "" {
		if _, err := os.Stat(h.BaseSpec); err != nil {
			bad(about, "correct base_runtime_spec", "%v", err)
		}
	}
	if h.Type == config.RuncType && h.Path == "" {
		r, err := h.Runc()
		if err != nil {
			bad(about, "correct its options", "%v", err)
			return
		}
		program := r.BinaryName
		if program == "" {
			program = "runc"
		}
		path, err := exec.LookPath(program)
		if err != nil {
			bad(about, "install it, or set BinaryName in the options of the runtime", "%s is not on PATH", program)
			return
		}
		out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
		if err != nil {
			bad(about, "run it by hand: "+path+" --version", "%s does not say its version: %v", path, err)
			return
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		v.ok(about, "%s (%s)", path, first)
		return
	}
	typ := h.Type
	if h.Path != "" {
		typ = h.Path
	}
	options, err := h.ShimOptions()
	if err == nil {
		_, err = l.Info(ctx, typ, options)
	}
	if err != nil {
		bad(about, "", "%v", err)
		return
	}
	v.ok(about, "%s", typ)
}

func (v *visit) network(ctx context.Context) {
	cfg := v.Config.Config
	if cfg.Off("io.containerd.grpc.v1.cri") {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	n := cni.New(cni.Config{
		Dir: cfg.Plugins.Runtime.CNI.ConfDir, Most: cfg.Plugins.Runtime.CNI.Max, BinDirs: cfg.Plugins.Runtime.CNI.BinDirs, Builtin: cfg.Berth.BuiltinCNI, Log: v.Log,
	})
	defer func() { _ = n.Close() }() // it made nothing
	switch c := n.Condition(ctx); {
	case !c.Ready:
		v.warn("pod network", "put a network configuration there: most cluster networks do it themselves; `berth network create` makes a simple one", "%s", c.Message)
	case c.Message != "":
		v.warn("pod network", "", "%s", c.Message)
	default:
		v.ok("pod network", "%s", filepath.Clean(cfg.Plugins.Runtime.CNI.ConfDir))
	}
}
