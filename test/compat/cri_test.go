// Package compat drives the daemon as its real clients do, and compares what they
// see with what those clients are written for.
package compat

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/lab"
)

// node is a daemon with a network of its own and one image.
type node struct {
	*lab.Lab
	t     *testing.T
	ctx   context.Context
	d     *lab.Daemon
	conn  *grpc.ClientConn
	image string
	ipam  string
	cni   string
	clean bool // removeAll has been
}

// newNode starts the daemon; more is added to its configuration.
func newNode(t *testing.T, more ...string) *node {
	t.Helper()
	l := lab.New(t)
	if err := os.Chmod(l.Dir, 0o711); err != nil { // the root of a user namespace must get to its files
		t.Fatal(err)
	}
	reg := l.Registry()
	oci := filepath.Join(l.Dir, "oci")
	if err := lab.Busybox(oci); err != nil {
		t.Fatal(err)
	}
	n := &node{Lab: l, t: t, image: reg.Host + "/library/busybox:latest", ipam: filepath.Join(l.Dir, "ipam"), cni: filepath.Join(l.Dir, "cni")}
	lab.Run(t, lab.Tool(t, "skopeo"), "copy", "-q", "--dest-tls-verify=false", "oci:"+oci+":busybox", "docker://"+n.image)
	bridge := l.Name("br")
	l.Ledger().OwnIPAM(filepath.Join(n.ipam, "lab"))
	n.write(filepath.Join(n.cni, "10-lab.conflist"), `{"cniVersion":"1.1.0","name":"lab","plugins":[
		{"type":"bridge","bridge":"`+bridge+`","isGateway":true,"ipam":{"type":"host-local","dataDir":"`+n.ipam+`","ranges":[[{"subnet":"10.101.200.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`)
	t.Cleanup(func() { _ = lab.Run(t, lab.Tool(t, "ip"), "link", "del", bridge) })
	config := filepath.Join(l.Dir, "config.toml")
	n.write(config, "version = 4\nimports = []\n[plugins.\"io.containerd.cri.v1.runtime\".cni]\nconf_dir = \""+n.cni+"\"\nbin_dirs = [\""+filepath.Dir(lab.Tool(t, "bridge"))+"\", \""+filepath.Join(l.Dir, "plugins")+"\"]\n"+
		"[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"\"\n"+strings.Join(more, "\n"))
	n.d = l.Daemon("--config", config)
	var cancel context.CancelFunc
	n.ctx, cancel = context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	n.dial()
	if _, err := cri.NewImageServiceClient(n.conn).PullImage(n.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: n.image}}); err != nil {
		t.Fatalf("pull: %v\n%s", err, n.d.Log)
	}
	t.Cleanup(n.removeAll)
	return n
}

func (n *node) write(path, text string) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) dial() {
	n.t.Helper()
	quick := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond}
	conn, err := grpc.NewClient("unix://"+n.d.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}))
	if err != nil {
		n.t.Fatal(err)
	}
	n.conn = conn
}

func (n *node) rt() cri.RuntimeServiceClient { return cri.NewRuntimeServiceClient(n.conn) }

// removeAll leaves no pod behind, whatever the test did. It comes before the end of
// the daemon that was started last, and once.
func (n *node) removeAll() {
	if n.clean {
		return
	}
	n.clean = true
	defer n.conn.Close()
	n.removePods()
}

func (n *node) removePods() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	all, err := n.rt().ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		n.t.Errorf("list the pods at the end: %v", err)
		return
	}
	for _, p := range all.GetItems() {
		if _, err := n.rt().RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			n.t.Errorf("remove a pod at the end: %v", err)
		}
	}
}

func (n *node) podConfig(name string, pid cri.NamespaceMode) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "test", Uid: "uid-" + name}, Hostname: name, LogDirectory: filepath.Join(n.Dir, "logs", name),
		Labels: map[string]string{"app": name}, Annotations: map[string]string{"note": "kept"},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: pid}}},
	}
}

func (n *node) containerConfig(name, script string, pid cri.NamespaceMode) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: n.image}, Command: []string{"sh", "-c", script}, LogPath: name + "/0.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: pid}}},
	}
}

func (n *node) runPod(c *cri.PodSandboxConfig) string {
	n.t.Helper()
	r, err := n.rt().RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: c})
	if err != nil {
		n.t.Fatalf("run pod: %v\n%s", err, n.d.Log)
	}
	return r.GetPodSandboxId()
}

func (n *node) create(pod string, pc *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	n.t.Helper()
	r, err := n.rt().CreateContainer(n.ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: pc})
	if err != nil {
		n.t.Fatalf("create container: %v\n%s", err, n.d.Log)
	}
	return r.GetContainerId()
}

func (n *node) start(id string) {
	n.t.Helper()
	if _, err := n.rt().StartContainer(n.ctx, &cri.StartContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatalf("start container: %v\n%s", err, n.d.Log)
	}
}

func (n *node) status(id string) *cri.ContainerStatus {
	n.t.Helper()
	r, err := n.rt().ContainerStatus(n.ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatalf("container status: %v", err)
	}
	return r.GetStatus()
}

func (n *node) podStatus(id string) *cri.PodSandboxStatus {
	n.t.Helper()
	r, err := n.rt().PodSandboxStatus(n.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		n.t.Fatalf("pod status: %v", err)
	}
	return r.GetStatus()
}

// ended waits for a container's end.
func (n *node) ended(id string) *cri.ContainerStatus {
	n.t.Helper()
	lab.Until(n.t, 20*time.Second, "container "+id+" ends", func() bool { return n.status(id).GetState() == cri.ContainerState_CONTAINER_EXITED })
	return n.status(id)
}

func (n *node) log(path string) string {
	n.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// TestCRILifecycle walks a pod through its life, with and without a process of its
// own, and finds nothing left.
func TestCRILifecycle(t *testing.T) {
	n := newNode(t)
	mapping := []*cri.IDMapping{{HostId: 500_000, Length: 65_536}}
	mapped := &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: mapping, Gids: mapping}
	for _, c := range []struct {
		name   string
		pid    cri.NamespaceMode
		userns *cri.UserNamespace
		users  string // line of /proc/self/uid_map
	}{
		{"own-pids", cri.NamespaceMode_CONTAINER, nil, "0 0 4294967295"},
		{"shared-pids", cri.NamespaceMode_POD, nil, "0 0 4294967295"},
		{"user-namespace", cri.NamespaceMode_CONTAINER, mapped, "0 500000 65536"},
		{"user-namespace-shared-pids", cri.NamespaceMode_POD, mapped, "0 500000 65536"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pid := c.pid
			pc := n.podConfig("life-"+c.name, pid)
			pc.Linux.SecurityContext.NamespaceOptions.UsernsOptions = c.userns
			pod := n.runPod(pc)
			st := n.podStatus(pod)
			if st.GetState() != cri.PodSandboxState_SANDBOX_READY || !strings.HasPrefix(st.GetNetwork().GetIp(), "10.101.200.") ||
				st.GetLabels()["app"] != pc.GetMetadata().GetName() || st.GetAnnotations()["note"] != "kept" {
				t.Errorf("pod: %v", st)
			}
			cc := n.containerConfig("main", "echo hello; echo reopened >/dev/stderr; hostname; echo users $(cat /proc/self/uid_map); touch /file; stat -c 'owner %u' /file /bin/sh; "+
				"ip addr show eth0 | grep -o '10[.]101[.]200[.][0-9]*' | head -1; exit 7", pid)
			cc.Linux.SecurityContext.NamespaceOptions.UsernsOptions = c.userns
			id := n.create(pod, pc, cc)
			if s := n.status(id); s.GetState() != cri.ContainerState_CONTAINER_CREATED {
				t.Errorf("created container: %v", s)
			}
			n.start(id)
			s := n.ended(id)
			if s.GetExitCode() != 7 || s.GetReason() != "Error" || s.GetFinishedAt() < s.GetStartedAt() || s.GetImageId() == "" || !strings.Contains(s.GetImageRef(), "@sha256:") {
				t.Errorf("ended container: %v", s)
			}
			text := n.log(s.GetLogPath())
			for _, want := range []string{" stdout F hello\n", " stderr F reopened\n", " stdout F " + pc.GetHostname() + "\n", " stdout F " + st.GetNetwork().GetIp() + "\n", " F users " + c.users + "\n", " F owner 0\n"} {
				if !strings.Contains(text, want) {
					t.Errorf("log %q lacks %q", text, want)
				}
			}
			if strings.Count(text, "owner 0") != 2 {
				t.Errorf("files of the image, and new ones, are root's inside: %q", text)
			}
			for range 2 { // the second time nothing is there any more
				if _, err := n.rt().StopPodSandbox(n.ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
					t.Errorf("stop: %v", err)
				}
			}
			if st := n.podStatus(pod); st.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("stopped pod: %v", st)
			}
			for range 2 {
				if _, err := n.rt().RemovePodSandbox(n.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
			if _, err := n.rt().PodSandboxStatus(n.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: pod}); status.Code(err) != codes.NotFound {
				t.Errorf("status of a removed pod: %v, want NotFound", err)
			}
		})
	}
}

// TestCRIIdempotence asks for the same things at the same time and again: each is
// made once.
func TestCRIIdempotence(t *testing.T) {
	n := newNode(t)
	pc := n.podConfig("twice", cri.NamespaceMode_CONTAINER)
	const askers = 8
	ids := make([]string, askers)
	together := func(fn func(int) (string, error)) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range ids {
			wg.Add(1)
			go func() {
				defer wg.Done()
				id, err := fn(i)
				if err != nil {
					t.Errorf("asker %d: %v", i, err)
				}
				ids[i] = id
			}()
		}
		wg.Wait()
		for _, id := range ids {
			if id != ids[0] || id == "" {
				t.Fatalf("different results: %q", ids)
			}
		}
	}
	together(func(int) (string, error) {
		r, err := n.rt().RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: pc})
		return r.GetPodSandboxId(), err
	})
	pod := ids[0]
	if again := n.runPod(pc); again != pod {
		t.Errorf("asked again: pod %s, want %s", again, pod)
	}
	together(func(int) (string, error) {
		r, err := n.rt().CreateContainer(n.ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: n.containerConfig("c", "sleep 1000", cri.NamespaceMode_CONTAINER), SandboxConfig: pc})
		return r.GetContainerId(), err
	})
	c := ids[0]
	n.start(c)
	together(func(i int) (string, error) {
		_, err := n.rt().StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: c, Timeout: int64(i % 2)})
		return c, err
	})
	if s := n.status(c); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 137 && s.GetExitCode() != 143 {
		t.Errorf("stopped container: %v", s)
	}
	together(func(int) (string, error) {
		_, err := n.rt().RemovePodSandbox(n.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
		return pod, err
	})
	if _, err := n.rt().StartContainer(n.ctx, &cri.StartContainerRequest{ContainerId: c}); status.Code(err) != codes.NotFound {
		t.Errorf("start of a removed container: %v, want NotFound", err)
	}
	// The name is free again, with another pod behind it.
	if again := n.runPod(pc); again == pod {
		t.Errorf("the removed pod %s is back", pod)
	}
}

// TestCRIRestart kills the daemon under running pods and finds them, with what
// happened meanwhile, when it is back.
func TestCRIRestart(t *testing.T) {
	n := newNode(t)
	pc := n.podConfig("lasting", cri.NamespaceMode_POD)
	pod := n.runPod(pc)
	ip := n.podStatus(pod).GetNetwork().GetIp()
	stay := n.create(pod, pc, n.containerConfig("stay", "trap 'exit 3' TERM; while :; do sleep 0.1; done", cri.NamespaceMode_POD))
	flag := filepath.Join(n.Dir, "flag")
	short := n.containerConfig("short", "while [ ! -e /host/flag ]; do sleep 0.05; done; echo last words; exit 42", cri.NamespaceMode_POD)
	short.Mounts = []*cri.Mount{{ContainerPath: "/host", HostPath: n.Dir, Readonly: true}}
	ends := n.create(pod, pc, short)
	made := n.create(pod, pc, n.containerConfig("made", "exit 0", cri.NamespaceMode_POD))
	n.start(stay)
	n.start(ends)
	before := n.status(stay)

	n.d.Kill()
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	logFile := filepath.Join(pc.GetLogDirectory(), "short/0.log")
	lab.Until(t, 10*time.Second, "the container ends without a daemon", func() bool { return strings.Contains(n.log(logFile), "last words") })
	time.Sleep(300 * time.Millisecond)

	if took := n.d.Start(); took > 10*time.Second { // a second on a machine of its own
		t.Errorf("the daemon was back after %s", took)
	}
	t.Cleanup(n.removeAll)
	n.dial()
	if st := n.podStatus(pod); st.GetState() != cri.PodSandboxState_SANDBOX_READY || st.GetNetwork().GetIp() != ip {
		t.Errorf("pod after the restart: %v", st)
	}
	if s := n.ended(ends); s.GetExitCode() != 42 || s.GetReason() != "Error" {
		t.Errorf("container that ended meanwhile: %v", s)
	}
	if s := n.status(stay); s.GetState() != cri.ContainerState_CONTAINER_RUNNING || s.GetStartedAt() != before.GetStartedAt() {
		t.Errorf("container that runs on: %v, before %v", s, before)
	}
	n.start(made)
	if s := n.ended(made); s.GetExitCode() != 0 || s.GetReason() != "Completed" {
		t.Errorf("container started after the restart: %v", s)
	}
	if _, err := n.rt().StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: stay, Timeout: 10}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if s := n.status(stay); s.GetExitCode() != 3 {
		t.Errorf("container stopped after the restart: %v", s)
	}
}

// TestCRIErrors: what cannot be is said in a way that helps, and leaves nothing.
func TestCRIErrors(t *testing.T) {
	n := newNode(t)
	pc := n.podConfig("bad", cri.NamespaceMode_CONTAINER)
	expect := func(what string, err error, code codes.Code, text string) {
		t.Helper()
		if status.Code(err) != code || !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("%s: %v, want %s with %q", what, err, code, text)
		}
	}
	_, err := n.rt().RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: pc, RuntimeHandler: "nothere"})
	expect("unknown handler", err, codes.NotFound, `runtime handler "nothere" is not configured`)
	_, err = n.rt().RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{}})
	expect("no metadata", err, codes.InvalidArgument, "metadata needs name, namespace and uid")

	// A network that cannot be made takes the pod back, and names the plugin.
	good := n.log(filepath.Join(n.cni, "10-lab.conflist"))
	n.write(filepath.Join(n.cni, "10-lab.conflist"), strings.Replace(good, `"portmap"`, `"nosuchplugin"`, 1))
	lab.Until(t, 10*time.Second, "the new configuration is read", func() bool {
		r, err := n.rt().Status(n.ctx, &cri.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.GetStatus().GetConditions() {
			if c.GetType() == "NetworkReady" && !c.GetStatus() && strings.Contains(c.GetMessage(), "nosuchplugin") {
				return true
			}
		}
		return false
	})
	_, err = n.rt().RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: pc})
	if err == nil || !strings.Contains(err.Error(), "nosuchplugin") {
		t.Errorf("run with a missing plugin: %v", err)
	}
	if all, err := n.rt().ListPodSandbox(n.ctx, &cri.ListPodSandboxRequest{}); err != nil || len(all.GetItems()) != 0 {
		t.Errorf("pods after a failed run: %v %v", all, err)
	}
	n.write(filepath.Join(n.cni, "10-lab.conflist"), good)
	lab.Until(t, 10*time.Second, "the pod runs once the plugin is there", func() bool {
		_, err = n.rt().RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: pc})
		return err == nil
	})
	pod := n.runPod(pc)
	c := n.containerConfig("c", "exit 0", cri.NamespaceMode_CONTAINER)
	c.Image.Image = "127.0.0.1:1/no/such:image"
	_, err = n.rt().CreateContainer(n.ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: pc})
	expect("image that is not there", err, codes.NotFound, "no/such:image")
	c = n.containerConfig("c", "exit 0", cri.NamespaceMode_CONTAINER)
	c.LogPath = "../../../etc/cron.d/x"
	_, err = n.rt().CreateContainer(n.ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: pc})
	expect("log path that leads out", err, codes.InvalidArgument, "must lie inside")
	c = n.containerConfig("c", "", cri.NamespaceMode_CONTAINER)
	c.Command = []string{"/no/such/program"}
	id := n.create(pod, pc, c)
	if _, err = n.rt().StartContainer(n.ctx, &cri.StartContainerRequest{ContainerId: id}); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start of a program that is not there: %v", err)
	}
	if s := n.status(id); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 128 || s.GetReason() != "StartError" {
		t.Errorf("container that could not start: %v", s)
	}
	if all, err := n.rt().ListContainers(n.ctx, &cri.ListContainersRequest{}); err != nil || len(all.GetContainers()) != 1 {
		t.Errorf("containers after failed creates: %v %v", all, err)
	}
}

// TestCRIHung: a plugin that hangs holds up its own pod only; who asks is told where
// it hangs, and a later request gets the result.
func TestCRIHung(t *testing.T) {
	n := newNode(t)
	release := filepath.Join(n.Dir, "release")
	plugin := filepath.Join(n.Dir, "plugins", "hanging")
	n.write(plugin, `#!/bin/sh
if [ "$CNI_COMMAND" = ADD ]; then
	while [ ! -e `+release+` ]; do sleep 0.05; done
fi
exec `+lab.Tool(t, "bridge")+`
`)
	if err := os.Chmod(plugin, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(n.cni, "10-lab.conflist")
	n.write(conf, strings.Replace(n.log(conf), `"type":"bridge"`, `"type":"hanging"`, 1))
	pc := n.podConfig("hung", cri.NamespaceMode_CONTAINER)
	var err error
	const limit = 6 * time.Second
	lab.Until(t, time.Minute, "a run that meets the hanging plugin", func() bool {
		short, cancel := context.WithTimeout(n.ctx, limit)
		defer cancel()
		begin := time.Now()
		_, err = n.rt().RunPodSandbox(short, &cri.RunPodSandboxRequest{Config: pc})
		if took := time.Since(begin); took >= limit && err != nil {
			t.Errorf("the answer came after the caller's own time: %v", err)
		}
		if err == nil { // the new configuration was not read yet
			n.removePods()
		}
		return err != nil
	})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "attaching it to network lab, for ") {
		t.Errorf("run with a plugin that hangs: %v", err)
	}
	if all, err := n.rt().ListPodSandbox(n.ctx, &cri.ListPodSandboxRequest{}); err != nil || len(all.GetItems()) != 0 {
		t.Errorf("a pod that is not made yet is listed: %v %v", all, err)
	}
	other := n.podConfig("other", cri.NamespaceMode_CONTAINER)
	other.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	begin := time.Now()
	n.runPod(other)
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("another pod waited %s for the one that hangs", took)
	}
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pod := n.runPod(pc) // joins the run in flight
	if st := n.podStatus(pod); st.GetState() != cri.PodSandboxState_SANDBOX_READY || st.GetNetwork().GetIp() == "" {
		t.Errorf("pod after all: %v", st)
	}
}

// TestCRIHungShim: a shim that hangs holds up its own pod only; who asks is told, and
// the pod can be removed all the same.
func TestCRIHungShim(t *testing.T) {
	n := newNode(t)
	pc := n.podConfig("stuck", cri.NamespaceMode_CONTAINER)
	pod := n.runPod(pc)
	id := n.create(pod, pc, n.containerConfig("c", "sleep 1000", cri.NamespaceMode_CONTAINER))
	n.start(id)
	k := killing{node: n}
	shim := k.someShim()
	if shim <= 0 || syscall.Kill(shim, syscall.SIGSTOP) != nil {
		t.Fatalf("shim %d cannot be stopped", shim)
	}
	t.Cleanup(func() { _ = syscall.Kill(shim, syscall.SIGCONT) }) // it is gone if all is well
	other := n.podConfig("other", cri.NamespaceMode_CONTAINER)
	begin := time.Now()
	oid := n.runPod(other)
	c := n.create(oid, other, n.containerConfig("c", "exit 0", cri.NamespaceMode_CONTAINER))
	n.start(c)
	n.ended(c)
	if s := n.status(id); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container of the shim that hangs: %v", s)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("another pod took %s", took)
	}
	short, cancel := context.WithTimeout(n.ctx, 6*time.Second)
	defer cancel()
	_, err := n.rt().StopPodSandbox(short, &cri.StopPodSandboxRequest{PodSandboxId: pod})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "its shim does not answer, for ") {
		t.Errorf("stop: %v", err)
	}
	if _, err := n.rt().RemovePodSandbox(n.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Errorf("remove: %v", err)
	}
	if all, err := n.rt().ListContainers(n.ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod}}); err != nil || len(all.GetContainers()) != 0 {
		t.Errorf("containers of the removed pod: %v %v", all, err)
	}
}
