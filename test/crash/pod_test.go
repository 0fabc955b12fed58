package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/lab"
)

// kube is a kubelet of a kind: it makes pods on a daemon, and makes them again when
// something went wrong on the way.
type kube struct {
	*place
	token string // names the cgroups of its pods
	conn  *grpc.ClientConn
	rt    cri.RuntimeServiceClient
	tries atomic.Int64
	owner atomic.Pointer[string] // the end that the ids of a daemon's pods have in common
}

// ownerDigits is how many digits of a pod's id name its daemon (engine/pod).
const ownerDigits = 12

// newKube starts a daemon with a network of its own.
func newKube(t *testing.T, bin string) *kube {
	l := lab.New(t)
	if bin != "" {
		l.Bin = bin
	}
	token := l.Name("kube")
	bridge, ipam, conf := l.Name("kb"), filepath.Join(l.Dir, "ipam"), filepath.Join(l.Dir, "cni")
	l.Ledger().OwnIPAM(ipam)
	if err := os.Mkdir(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(conf, "1.conflist"), `{"cniVersion":"1.0.0","name":"`+token+`","plugins":[
		{"type":"bridge","bridge":"`+bridge+`","isGateway":true,"ipam":{"type":"host-local","dataDir":"`+ipam+`","ranges":[[{"subnet":"10.107.64.0/18"}]]}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`)
	config := filepath.Join(l.Dir, "config.toml")
	write(t, config, "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".cni]\nconf_dir = \""+conf+"\"\n"+
		"[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \""+filepath.Join(l.Dir, "hosts")+"\"\n")
	t.Cleanup(func() { lab.Run(t, lab.Tool(t, "ip"), "link", "del", bridge) })
	p := placeIn(t, l, "--config", config)
	conn, err := grpc.NewClient("unix:"+p.d.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	k := &kube{place: p, token: token, conn: conn, rt: cri.NewRuntimeServiceClient(conn)}
	p.d.MustCtr("-n", "k8s.io", "images", "pull", "--plain-http", p.busybox)
	return k
}

// life is one pod from its start to its removal.
func (k *kube) life(ctx context.Context, name string, attempt uint32) (err error) {
	k.tries.Add(1)
	ns := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Uid: k.token + name, Namespace: "crash", Attempt: attempt}, LogDirectory: filepath.Join(k.Dir, "logs", name),
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + k.token + "/" + name, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ns}},
	}
	up, err := k.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("run pod: %w", err)
	}
	pod := up.GetPodSandboxId()
	owner := pod[len(pod)-ownerDigits:]
	k.owner.Store(&owner)
	c, err := k.rt.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: k.busybox, UserSpecifiedImage: k.busybox},
		Command: []string{"sh", "-c", "echo started; exec sleep 1000"}, LogPath: "main.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: ns}},
	}})
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	if _, err := k.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	if _, err := k.rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
		return fmt.Errorf("stop container: %w", err)
	}
	return k.removePod(ctx, pod)
}

func (k *kube) removePod(ctx context.Context, id string) error {
	if _, err := k.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	if _, err := k.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	return nil
}

// pods lists those of one name, or all.
func (k *kube) pods(ctx context.Context, name string) ([]string, error) {
	all, err := k.rt.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}, grpc.WaitForReady(true))
	var out []string
	for _, p := range all.GetItems() {
		if name == "" || p.GetMetadata().GetName() == name {
			out = append(out, p.GetId())
		}
	}
	return out, err
}

// callLimit is how long a kubelet waits for one step.
const callLimit = 30 * time.Second

// live brings one pod through its life, however often the ground goes from under
// it: what a failed attempt left is removed first, as a kubelet does.
func (k *kube) live(name string) error {
	var last error
	for attempt := range uint32(40) {
		lived := k.within(func(ctx context.Context) error { return k.life(ctx, name, attempt) })
		cleared := k.within(func(ctx context.Context) error {
			left, err := k.pods(ctx, name)
			for _, id := range left {
				err = errors.Join(err, k.removePod(ctx, id))
			}
			return err
		})
		if last = errors.Join(lived, cleared); last == nil {
			return nil
		}
	}
	return fmt.Errorf("pod %s after 40 attempts: %w", name, last)
}

func (k *kube) within(fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	return fn(ctx)
}

// nothing checks that no pod has left anything.
func (k *kube) nothing() {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	left, err := k.pods(ctx, "")
	if err != nil {
		k.t.Fatal(err)
	}
	for _, id := range left {
		k.t.Errorf("left behind in the daemon: pod %s", id)
	}
	containers, err := k.rt.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		k.t.Fatal(err)
	}
	for _, c := range containers.GetContainers() {
		k.t.Errorf("left behind in the daemon: container %s of the CRI", c.GetId())
	}
	for range 50 { // what runs in them may still be on its way out
		if k.removeGroups(); len(k.Ledger().Left()) == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	k.place.nothing(true)
	k.bundles()
	if owner := k.owner.Load(); owner != nil {
		found, _ := filepath.Glob("/run/netns/berth-*" + *owner)
		for _, f := range found {
			k.t.Errorf("left behind: netns %s", f)
		}
	}
}

// removeGroups removes the pods' own cgroups, which are a kubelet's; one with
// something in it stays, and the ledger tells of it.
func (k *kube) removeGroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + k.token, "/sys/fs/cgroup/" + k.token} {
		tops, _ := filepath.Glob(pattern)
		for _, top := range tops {
			pods, _ := os.ReadDir(top)
			for _, p := range pods {
				_ = syscall.Rmdir(filepath.Join(top, p.Name()))
			}
			_ = syscall.Rmdir(top)
		}
	}
}

// bundles checks that no directory of a pod or a task is left in the state.
func (k *kube) bundles() {
	k.t.Helper()
	for _, pattern := range []string{"state/pods/*", "state/netns/*", "state/io.containerd.runtime.v2.task/*/*", "root/pods/*", "root/io.containerd.runtime.v2.task/*/*"} {
		found, _ := filepath.Glob(filepath.Join(k.Dir, pattern))
		for _, f := range found {
			k.t.Errorf("left behind on disk: %s", f)
		}
	}
}

// chaos kills the daemon (and starts it again) and shims at random moments, until
// stop is closed.
func (k *kube) chaos(r *rand.Rand, stop <-chan struct{}) (daemons, shims int) {
	for {
		select {
		case <-stop:
			return daemons, shims
		case <-time.After(time.Duration(20+r.IntN(480)) * time.Millisecond):
		}
		if all := k.shims(); r.IntN(2) == 0 && len(all) > 0 {
			if syscall.Kill(all[r.IntN(len(all))], syscall.SIGKILL) == nil {
				shims++
			}
			continue
		}
		k.d.Kill()
		daemons++
		if r.IntN(3) == 0 { // sometimes a shim dies while nobody is there
			if all := k.shims(); len(all) > 0 && syscall.Kill(all[r.IntN(len(all))], syscall.SIGKILL) == nil {
				shims++
			}
		}
		k.d.Start() // how soon it is ready is measured where nothing else works
		k.answers()
		time.Sleep(300 * time.Millisecond)
	}
}

// TestPodsInChaos brings pods through their lives, ten for each round, while
// daemon and shims are killed at random: nothing of them stays behind.
func TestPodsInChaos(t *testing.T) {
	r := random(t)
	k := newKube(t, "")
	if err := k.live("first"); err != nil {
		t.Fatalf("%v\n%s", err, k.d.Log)
	}
	k.nothing()
	const atOnce = 6
	count := 10 * rounds(t)
	stop, next := make(chan struct{}), make(chan string)
	var daemons, shims int
	var killer, workers sync.WaitGroup
	killer.Add(1)
	// owner: this function waits for killer below.
	go func() { defer killer.Done(); daemons, shims = k.chaos(r, stop) }()
	for range atOnce {
		workers.Add(1)
		// owner: this function waits for workers below.
		go func() {
			defer workers.Done()
			for name := range next {
				if err := k.live(name); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	for n := range count {
		next <- fmt.Sprintf("pod%d", n)
	}
	close(next)
	workers.Wait()
	close(stop)
	killer.Wait()
	t.Logf("%d pods in %d attempts; the daemon was killed %d times, shims %d times", count, k.tries.Load()-1, daemons, shims)
	k.nothing()
	if strings.Contains(k.d.Log.String(), "panic:") {
		t.Errorf("the daemon panicked:\n%s", k.d.Log)
	}
}

// TestContainerFailpoints kills the daemon at every failpoint of a pod's container.
func TestContainerFailpoints(t *testing.T) {
	k := newKube(t, lab.BuildWith(t, "failpoint"))
	for _, point := range points(t) {
		if !strings.HasPrefix(point, "container.") {
			continue
		}
		k.d.Stop(t)
		k.d.Env = []string{"BERTH_FAILPOINT=" + point + "=kill"}
		k.d.Start()
		err := k.within(func(ctx context.Context) error { return k.life(ctx, "dies", 0) })
		k.d.Env = nil
		if err == nil {
			t.Errorf("failpoint %s is never reached: extend the life that this test leads", point)
			continue
		}
		select {
		case <-k.d.Done():
		case <-time.After(time.Second):
			t.Fatalf("%s: the daemon lives, and %v\n%s", point, err, k.d.Log)
		}
		k.restart()
		if err := k.live("dies"); err != nil {
			t.Fatalf("after %s: %v\n%s", point, err, k.d.Log)
		}
		k.nothing()
		if t.Failed() {
			t.Fatalf("failpoint %s", point)
		}
	}
}
