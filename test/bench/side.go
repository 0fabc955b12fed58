package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// side is one of the two runtimes, with a daemon and directories of its own.
type side struct {
	name   string
	dir    string
	socket string
	cni    string // directory of its network configuration
	own    string // what command lines of its processes hold, and no others
	cmd    *exec.Cmd
	log    *os.File
	done   chan struct{}
}

// bench is everything that is set up for a measurement.
type bench struct {
	o        options
	dir      string
	registry *exec.Cmd
	host     string  // of the registry
	sides    []*side // berth, containerd
	undo     []func()
}

func newBench(ctx context.Context, o options) (*bench, error) {
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, dir: dir}
	if err := b.setUp(ctx); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bench) setUp(ctx context.Context) error {
	for _, tool := range []string{"ctr", "containerd", "containerd-shim-runc-v2", "runc", "docker-registry", "skopeo", "bridge", "host-local"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not on PATH: run `make tools` and put its directory first", tool)
		}
	}
	if err := b.startRegistry(ctx); err != nil {
		return err
	}
	if err := b.images(ctx); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	for i, name := range []string{"berth", "containerd"} {
		s := &side{name: name, dir: filepath.Join(b.dir, name)}
		s.socket, s.cni = filepath.Join(s.dir, "s.sock"), filepath.Join(s.dir, "net.d")
		s.own = s.dir
		for _, d := range []string{s.dir, s.cni} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if err := s.writeNetwork(i); err != nil {
			return err
		}
		b.sides = append(b.sides, s)
		if err := s.start(b); err != nil {
			return err
		}
	}
	return nil
}

// config is what both daemons read: containerd's format, with the same network.
func (s *side) config(sandbox string) string {
	bin, _ := exec.LookPath("bridge")
	return fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
[grpc]
  address = %[3]q
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[4]q]
    conf_dir = %[5]q
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = %[6]q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %[7]q
`, filepath.Join(s.dir, "root"), filepath.Join(s.dir, "state"), s.socket, filepath.Dir(bin), s.cni, filepath.Join(s.dir, "hosts"), sandbox)
}

func (s *side) writeNetwork(i int) error {
	text := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"bench%[1]d","plugins":[{"type":"bridge","bridge":"bb%[1]d","isGateway":true,"ipMasq":false,
"ipam":{"type":"host-local","dataDir":%[2]q,"ranges":[[{"subnet":"10.107.%[3]d.0/23"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
{"type":"portmap","capabilities":{"portMappings":true}}]}`, i, filepath.Join(s.dir, "ipam"), 100+2*i)
	return os.WriteFile(filepath.Join(s.cni, "10-bench.conflist"), []byte(text), 0o644)
}

func (s *side) start(b *bench) error {
	file := filepath.Join(s.dir, "config.toml")
	if err := os.WriteFile(file, []byte(s.config(b.image("pause"))), 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	s.log = log
	if s.name == "berth" {
		s.cmd = exec.Command(filepath.Join(b.o.bin, "berth"), "daemon", "--config", file)
	} else {
		path, err := exec.LookPath("containerd")
		if err != nil {
			return err
		}
		s.cmd = exec.Command(path, "--config", file)
	}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.done = make(chan struct{})
	// owner: stop waits for done.
	go func() { _ = s.cmd.Wait(); close(s.done) }()
	end := time.Now().Add(30 * time.Second)
	for {
		if c, err := net.Dial("unix", s.socket); err == nil {
			return c.Close()
		}
		select {
		case <-s.done:
			return fmt.Errorf("%s ended at its start: %s", s.name, s.tail())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not answer: %s", s.name, s.tail())
		}
	}
}

func (s *side) tail() string {
	data, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(data[max(0, len(data)-2000):])
}

func (s *side) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(15 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	_ = s.log.Close()
	s.cmd = nil
}

// ctr runs the same client on either side.
func (s *side) ctr(ctx context.Context, args ...string) (string, error) {
	return s.program(ctx, "ctr", args...)
}

func (s *side) program(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "CONTAINERD_ADDRESS="+s.socket, "BERTH_ADDRESS="+s.socket)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s %s: %w: %.1000s", s.name, filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// timed is how long a client took, in milliseconds.
func (s *side) timed(ctx context.Context, name string, args ...string) (float64, error) {
	begin := time.Now()
	_, err := s.program(ctx, name, args...)
	return ms(time.Since(begin)), err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// inTurns runs fn on each side, n times, one after the other; who begins changes.
// A first round is not counted.
func (b *bench) inTurns(n int, fn func(s *side, round int) (float64, error)) (ours, theirs series, err error) {
	out := map[string]*series{"berth": &ours, "containerd": &theirs}
	for round := range n + 1 {
		for k := range b.sides {
			s := b.sides[(k+round)%2]
			v, err := fn(s, round)
			if err != nil {
				return nil, nil, err
			}
			if round > 0 {
				*out[s.name] = append(*out[s.name], v)
			}
		}
	}
	return ours, theirs, nil
}

func (b *bench) startRegistry(ctx context.Context) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	b.host = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: %q}\n", filepath.Join(cache, "registry"), b.host)
	config := filepath.Join(b.dir, "registry.yml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	b.registry = exec.Command("docker-registry", "serve", config)
	b.registry.Stdout, b.registry.Stderr = io.Discard, io.Discard
	if err := b.registry.Start(); err != nil {
		return err
	}
	end := time.Now().Add(10 * time.Second)
	for {
		if c, err := net.Dial("tcp", b.host); err == nil {
			return c.Close()
		}
		if time.Now().After(end) {
			return errors.New("docker-registry does not answer")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// cacheDir keeps images from run to run: to make them takes longer than to
// measure with them.
func cacheDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/root/.cache"
	}
	dir := filepath.Join(cache, "berth-bench")
	return dir, os.MkdirAll(dir, 0o755)
}

func (b *bench) close() {
	for _, fn := range b.undo {
		fn()
	}
	for i, s := range b.sides {
		s.stop()
		_ = exec.Command("ip", "link", "del", fmt.Sprintf("bb%d", i)).Run() // it may not have been made
	}
	removeGroups()
	if b.registry != nil {
		_ = b.registry.Process.Kill()
		_ = b.registry.Wait()
	}
	if err := os.RemoveAll(b.dir); err != nil {
		progress("bench: %v", err)
	}
}

// groups is the cgroup below which pods get theirs, as a kubelet would give them.
const groups = "berth-bench"

// removeGroups removes the pods' cgroups, which no runtime does.
func removeGroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + groups, "/sys/fs/cgroup/" + groups} {
		tops, _ := filepath.Glob(pattern)
		for _, top := range tops {
			pods, _ := os.ReadDir(top)
			for _, p := range pods {
				_ = syscall.Rmdir(filepath.Join(top, p.Name())) // files are not directories
			}
			_ = syscall.Rmdir(top)
		}
	}
}
