package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Containerd is the peer: a stock containerd with its own root, state and socket.
type Containerd struct {
	*Process
	lab    *Lab
	Dir    string
	Socket string
	config string
	path   string
}

// Containerd starts a stock containerd without its CRI and waits until it answers.
// Programs in the directories of path are found before those on PATH.
func (l *Lab) Containerd(path ...string) *Containerd {
	l.T.Helper()
	c := &Containerd{lab: l, Dir: filepath.Join(l.Dir, "containerd"), path: strings.Join(append(path, os.Getenv("PATH")), ":")}
	c.Socket, c.config = filepath.Join(c.Dir, "c.sock"), filepath.Join(c.Dir, "config.toml")
	if err := os.MkdirAll(c.Dir, 0o711); err != nil {
		l.T.Fatal(err)
	}
	text := fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
imports = []
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri", "io.containerd.podsandbox.controller.v1.podsandbox"]
[grpc]
  address = %[3]q
[plugins."io.containerd.internal.v1.opt"]
  path = %[4]q
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %[5]q
`, filepath.Join(c.Dir, "root"), filepath.Join(c.Dir, "state"), c.Socket, filepath.Join(c.Dir, "opt"), filepath.Join(c.Dir, "s"))
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		l.T.Fatal(err)
	}
	l.T.Cleanup(c.unmount) // after it was stopped
	c.Start()
	return c
}

// Start starts it, again if it ran before.
func (c *Containerd) Start() {
	c.lab.T.Helper()
	cmd := exec.Command(Tool(c.lab.T, "containerd"), "-c", c.config)
	cmd.Env = append(os.Environ(), "PATH="+c.path)
	c.Process = Start(c.lab.T, cmd)
	Until(c.lab.T, 30*time.Second, "containerd answers", func() bool {
		select {
		case <-c.Done():
			c.lab.T.Fatalf("containerd ended:\n%s", c.Log)
		default:
		}
		_, err := c.Ctr("version")
		return err == nil
	})
}

// unmount ends what it left mounted: it does not end the mounts of its own mount
// service when it stops.
func (c *Containerd) unmount() {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		c.lab.T.Error(err)
		return
	}
	for _, line := range strings.Split(string(table), "\n") {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], c.Dir+"/") {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH) // the ledger tells what stays
		}
	}
}

// Ctr runs ctr against it and returns its output.
func (c *Containerd) Ctr(args ...string) (string, error) {
	cmd := exec.Command(Tool(c.lab.T, "ctr"), args...)
	cmd.Env = append(os.Environ(), "CONTAINERD_ADDRESS="+c.Socket)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// MustCtr is Ctr that must not fail.
func (c *Containerd) MustCtr(args ...string) string {
	c.lab.T.Helper()
	out, err := c.Ctr(args...)
	if err != nil {
		c.lab.T.Fatalf("ctr %s: %v\n%s\ncontainerd:\n%s", strings.Join(args, " "), err, tail(out), tail(c.Log.String()))
	}
	return out
}

// tail is the end of a long text.
func tail(text string) string {
	const most = 2000
	if len(text) > most {
		return "…" + text[len(text)-most:]
	}
	return text
}
