package nri

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// launchAll starts the programs of the plugin directory, in the order of their
// names. Each takes part before the next is started.
func (p *Plugins) launchAll() {
	entries, err := os.ReadDir(p.cfg.PluginDir)
	if err != nil {
		if p.cfg.PluginDir != "" && !errors.Is(err, fs.ErrNotExist) {
			p.log.Error("the plugin directory cannot be read", "error", err)
		}
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 && info.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if err := p.launch(e.Name()); err != nil {
			p.log.Error("a plugin of the plugin directory cannot be used", "plugin", e.Name(), "error", err)
		}
	}
}

// launch starts one plugin at one end of a socket pair.
func (p *Plugins) launch(file string) error {
	index, base, err := api.ParsePluginName(file)
	if err != nil {
		return errs.New(errs.InvalidArgument, "%w", err)
	}
	path := filepath.Join(p.cfg.PluginDir, file)
	if err := noWasm(path); err != nil {
		return err
	}
	config, err := p.pluginConfig(index, base)
	if err != nil {
		return err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "nri"), os.NewFile(uintptr(fds[1]), "nri")
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return errors.Join(err, theirs.Close())
	}
	cmd := exec.Command(path)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = []string{api.PluginNameEnvVar + "=" + base, api.PluginIdxEnvVar + "=" + index, api.PluginSocketEnvVar + "=3"}
	if err := errors.Join(cmd.Start(), theirs.Close()); err != nil {
		return errors.Join(err, conn.Close())
	}
	known := program{base: base, index: index, config: config, cmd: cmd, ended: make(chan struct{})}
	p.wg.Add(1)
	// owner: Close ends every program and waits.
	go func() {
		defer p.wg.Done()
		defer close(known.ended)
		if err := cmd.Wait(); err != nil {
			p.log.Info("a plugin's program has ended", "plugin", file, "error", err)
		}
	}()
	pl, err := p.connect(conn, known)
	if err != nil {
		return err
	}
	pl.pid = cmd.Process.Pid
	return p.admit(pl)
}

// pluginConfig is what the plugin's file in the configuration directory says.
func (p *Plugins) pluginConfig(index, base string) (string, error) {
	for _, name := range []string{index + "-" + base + ".conf", base + ".conf"} {
		text, err := os.ReadFile(filepath.Join(p.cfg.ConfigDir, name))
		if err == nil {
			return string(text), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", nil
}

// noWasm refuses a WebAssembly module: there is no interpreter here.
func noWasm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // only read from
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err == nil && bytes.Equal(head, []byte("\x00asm")) {
		return errs.New(errs.Unimplemented, "WebAssembly plugins are not supported: use a program")
	}
	return nil
}

// endTime is how long a program has to end by itself once its connection is closed.
const endTime = time.Second

// endProgram ends a program that was started here, in its own time.
func (pl *plugin) endProgram() {
	if pl.cmd == nil || pl.cmd.Process == nil {
		return
	}
	pl.all.wg.Add(1)
	// owner: Close waits; it takes no longer than two times endTime.
	go func() {
		defer pl.all.wg.Done()
		for _, end := range []func() error{func() error { return nil }, func() error { return pl.cmd.Process.Signal(unix.SIGTERM) }, pl.cmd.Process.Kill} {
			if err := end(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				pl.all.log.Warn("end a plugin's program", "plugin", pl.name(), "error", err)
			}
			t := time.NewTimer(endTime)
			select {
			case <-pl.ended:
				t.Stop()
				return
			case <-t.C:
			}
		}
	}()
}
