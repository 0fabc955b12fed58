package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"os/exec"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// node drives one side as a kubelet does.
type node struct {
	*side
	conn  *grpc.ClientConn
	rt    cri.RuntimeServiceClient
	image string
	n     atomic.Int64
}

type pod struct{ id, container string }

const (
	parallel = 10 // pods in flight in a batch
	batches  = 3
	idleTime = 10 * time.Second
)

func (b *bench) node(ctx context.Context, s *side) (*node, error) {
	conn, err := grpc.NewClient("unix:"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	n := &node{side: s, conn: conn, rt: cri.NewRuntimeServiceClient(conn), image: b.image("busybox")}
	hosts := filepath.Join(s.dir, "hosts", b.host)
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("server = \"http://%s\"\n", b.host)
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(text), 0o644); err != nil {
		return nil, err
	}
	_, err = cri.NewImageServiceClient(conn).PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: n.image}})
	return n, err
}

// start makes a pod with one container, each pod in a cgroup of its own.
func (n *node) start(ctx context.Context) (pod, error) {
	name := fmt.Sprintf("p%d", n.n.Add(1))
	uid := fmt.Sprintf("%s-%s-%d", n.name, name, time.Now().UnixNano())
	ns := &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD}
	logs := filepath.Join(n.dir, "logs", uid)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return pod{}, err
	}
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Uid: uid, Namespace: "bench"}, LogDirectory: logs,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + groups + "/" + uid, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ns}},
	}
	sandbox, err := n.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return pod{}, fmt.Errorf("%s: run pod: %w", n.name, err)
	}
	p := pod{id: sandbox.PodSandboxId}
	c, err := n.rt.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: n.image, UserSpecifiedImage: n.image},
		Command: []string{"sleep", "100000"}, LogPath: "main.log",
		Linux: &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{CpuShares: 102}, SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: ns}},
	}})
	if err != nil {
		return p, fmt.Errorf("%s: create container: %w", n.name, err)
	}
	p.container = c.ContainerId
	if _, err := n.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container}); err != nil {
		return p, fmt.Errorf("%s: start container: %w", n.name, err)
	}
	return p, nil
}

func (n *node) remove(ctx context.Context, p pod) error {
	if _, err := n.rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container}); err != nil {
		return fmt.Errorf("%s: stop container: %w", n.name, err)
	}
	if _, err := n.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("%s: stop pod: %w", n.name, err)
	}
	if _, err := n.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("%s: remove pod: %w", n.name, err)
	}
	return nil
}

// each runs fn for every number below count, several at a time.
func each(count int, fn func(i int) error) error {
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	errs := make([]error, count)
	for i := range count {
		slots <- struct{}{}
		wg.Add(1)
		// owner: this function waits for it below.
		go func() { defer func() { <-slots; wg.Done() }(); errs[i] = fn(i) }()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// figures are one side's of one round.
type figures map[string]float64

// cri measures pods as a kubelet makes them.
func (b *bench) cri(ctx context.Context) error {
	nodes := map[*side]*node{}
	for _, s := range b.sides {
		n, err := b.node(ctx, s)
		if err != nil {
			return err
		}
		defer n.conn.Close()
		nodes[s] = n
	}
	var starts, stops row
	starts.what, stops.what = "pod start, one by one, p50 ms", "stop and remove, p50 ms"
	var err error
	progress("pods one by one")
	starts.berth, starts.peer, err = b.inTurns(b.o.runs, func(s *side, round int) (float64, error) {
		begin := time.Now()
		p, err := nodes[s].start(ctx)
		took := ms(time.Since(begin))
		if err != nil {
			return 0, err
		}
		begin = time.Now()
		err = nodes[s].remove(ctx, p)
		if round > 0 {
			if s.name == "berth" {
				stops.berth = append(stops.berth, ms(time.Since(begin)))
			} else {
				stops.peer = append(stops.peer, ms(time.Since(begin)))
			}
		}
		return took, err
	})
	if err != nil {
		return err
	}
	got := map[string]map[string]series{"berth": {}, "containerd": {}}
	for round := range batches {
		for k := range b.sides {
			s := b.sides[(k+round)%2]
			progress("batch of %d, %s, round %d", b.o.pods, s.name, round+1)
			f, err := b.batch(ctx, nodes[s])
			if err != nil {
				return err
			}
			for what, v := range f {
				got[s.name][what] = append(got[s.name][what], v)
			}
		}
	}
	rows := []row{starts, stops}
	for _, what := range []string{"wall", "teardown", "exec", "list", "pss", "daemon", "processes", "rest"} {
		rows = append(rows, row{fmt.Sprintf(titles[what], b.o.pods), got["berth"][what], got["containerd"][what]})
	}
	flushes := row{what: "disk flushes traced, a pod start and removal"}
	for _, s := range b.sides {
		v, err := b.flushes(ctx, nodes[s])
		if err != nil {
			return err
		}
		if s.name == "berth" {
			flushes.berth = series{v}
		} else {
			flushes.peer = series{v}
		}
	}
	table("Pods through CRI", append(rows, flushes))
	return nil
}

var titles = map[string]string{
	"wall": "%d pods, 10 at a time, s", "teardown": "their teardown (%d), s", "exec": "ExecSync `true` among %d pods, p50 ms",
	"list": "list of %d pods and containers, p50 ms", "pss": "memory of all runtime processes, %d pods, PSS MiB", "daemon": "– of which the daemon (%d pods), PSS MiB",
	"processes": "– processes (%d pods)", "rest": "CPU at rest, %d pods, ms/s",
}

func (b *bench) batch(ctx context.Context, n *node) (figures, error) {
	f := figures{}
	pods := make([]pod, b.o.pods)
	begin := time.Now()
	err := each(len(pods), func(i int) (err error) { pods[i], err = n.start(ctx); return err })
	f["wall"] = time.Since(begin).Seconds()
	if err != nil {
		return nil, err
	}
	time.Sleep(3 * time.Second)
	before, at := n.cpu(), time.Now()
	time.Sleep(idleTime)
	f["rest"] = (n.cpu() - before) / time.Since(at).Seconds()
	daemon, shims, count := n.pss()
	f["pss"], f["daemon"], f["processes"] = daemon+shims, daemon, float64(count+1)
	var lists, execs series
	for range 20 {
		begin = time.Now()
		if _, err := n.rt.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); err != nil {
			return nil, err
		}
		if _, err := n.rt.ListContainers(ctx, &cri.ListContainersRequest{}); err != nil {
			return nil, err
		}
		lists = append(lists, ms(time.Since(begin)))
		begin = time.Now()
		r, err := n.rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: pods[0].container, Cmd: []string{"true"}, Timeout: 10})
		if err != nil || r.ExitCode != 0 {
			return nil, fmt.Errorf("%s: exec: %v %w", n.name, r, err)
		}
		execs = append(execs, ms(time.Since(begin)))
	}
	f["list"], f["exec"] = lists.median(), execs.median()
	begin = time.Now()
	err = each(len(pods), func(i int) error { return n.remove(ctx, pods[i]) })
	f["teardown"] = time.Since(begin).Seconds()
	return f, err
}

var flushCall = regexp.MustCompile(`(?m)^.*\b(fsync|fdatasync|syncfs|sync_file_range)\(`)

// flushes counts what asks the disk to flush while one pod lives: system calls of
// the daemon and of all it starts.
func (b *bench) flushes(ctx context.Context, n *node) (float64, error) {
	p, err := n.start(ctx) // what only a first pod does is not counted
	if err != nil {
		return 0, err
	}
	if err := n.remove(ctx, p); err != nil {
		return 0, err
	}
	time.Sleep(2 * time.Second)
	out := filepath.Join(b.dir, "flushes-"+n.name)
	trace := exec.Command("strace", "-f", "-q", "-e", "trace=fsync,fdatasync,syncfs", "-o", out, "-p", strconv.Itoa(n.cmd.Process.Pid))
	if err := trace.Start(); err != nil {
		return 0, err
	}
	time.Sleep(time.Second) // until it is attached
	p, err = n.start(ctx)
	if err == nil {
		err = n.remove(ctx, p)
	}
	_ = trace.Process.Signal(os.Interrupt)
	_ = trace.Wait() // it ends by our signal
	if err != nil {
		return 0, err
	}
	data, err := os.ReadFile(out)
	return float64(len(flushCall.FindAll(data, -1))), err
}
