package compat

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// lives is how many pods TestCRIKills takes through their lives; BERTH_CRI_LIVES
// changes it. The full count is 500.
func lives(t *testing.T) int {
	text := os.Getenv("BERTH_CRI_LIVES")
	if text == "" {
		return 12
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("BERTH_CRI_LIVES=%q is no count", text)
	}
	return n
}

// TestCRIKills takes pods through their lives, several at a time, as a kubelet does:
// what fails is asked for again. Meanwhile the daemon and shims are killed at random.
// At the end nothing may be left.
func TestCRIKills(t *testing.T) {
	n := newNode(t)
	var cancel context.CancelFunc
	n.ctx, cancel = context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	k := &killing{node: n, work: make(chan int)}
	stop := make(chan struct{})
	var killer, workers sync.WaitGroup
	killer.Add(1)
	go func() {
		defer killer.Done()
		k.kill(stop)
	}()
	for range 4 {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for i := range k.work {
				k.life(i)
			}
		}()
	}
	total := lives(t)
	for i := range total {
		k.work <- i
	}
	close(k.work)
	workers.Wait()
	close(stop)
	killer.Wait()
	t.Logf("%d lives, %d kills of the daemon, %d of shims, %d requests asked again, %d containers lost with their shim", total, k.daemons, k.shims, k.again, k.lost)
	if all, err := n.rt().ListPodSandbox(n.ctx, &cri.ListPodSandboxRequest{}); err != nil || len(all.GetItems()) > 0 {
		t.Errorf("pods that are left: %v %v", all, err)
	}
	if all, err := n.rt().ListContainers(n.ctx, &cri.ListContainersRequest{}); err != nil || len(all.GetContainers()) > 0 {
		t.Errorf("containers that are left: %v %v", all, err)
	}
	t.Cleanup(n.removeAll)
}

type killing struct {
	*node
	work chan int
	mu   sync.Mutex

	daemons, shims, again, lost int
}

// kill ends the daemon, and sometimes a shim, again and again.
func (k *killing) kill(stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(300+rand.IntN(1200)) * time.Millisecond):
		}
		if rand.IntN(3) == 0 {
			if pid := k.someShim(); pid > 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
				k.count(&k.shims)
			}
			continue
		}
		k.d.Kill()
		k.count(&k.daemons)
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		k.d.Start()
	}
}

func (k *killing) count(n *int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	*n++
}

func (k *killing) someShim() int {
	var pids []int
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well formed
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(b), "berth-shim\x00serve\x00") && strings.Contains(string(b), k.Dir) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	if len(pids) == 0 {
		return 0
	}
	return pids[rand.IntN(len(pids))]
}

// ask repeats a request until it is answered: by success, or by an error that a
// living daemon gives.
func (k *killing) ask(what string, fn func(context.Context) error) error {
	end := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(k.ctx, 20*time.Second)
		err := fn(ctx)
		cancel()
		switch status.Code(err) {
		case codes.OK:
			return nil
		case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
			// The daemon died, or is about to.
		default:
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: not answered within a minute: %w", what, err)
		}
		k.count(&k.again)
		time.Sleep(30 * time.Millisecond)
	}
}

// life takes one pod from run to remove. A shim that is killed takes its containers
// along: then what was to be done with them may fail, and removal may not.
func (k *killing) life(i int) {
	pid := []cri.NamespaceMode{cri.NamespaceMode_CONTAINER, cri.NamespaceMode_POD}[i%2]
	pc := k.podConfig(fmt.Sprintf("life%d", i), pid)
	var pod, id string
	err := k.ask("run", func(ctx context.Context) error {
		r, err := k.rt().RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pc})
		pod = r.GetPodSandboxId()
		return err
	})
	if err == nil {
		err = k.ask("create", func(ctx context.Context) error {
			r, err := k.rt().CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: k.containerConfig("c", "sleep 1000", pid), SandboxConfig: pc})
			id = r.GetContainerId()
			return err
		})
	}
	if err == nil {
		err = k.ask("start", func(ctx context.Context) error {
			_, err := k.rt().StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		})
		if err == nil || status.Code(err) == codes.FailedPrecondition { // asked again, it runs already
			err = k.ask("stop", func(ctx context.Context) error {
				_, err := k.rt().StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
				return err
			})
		}
	}
	if err != nil {
		k.count(&k.lost)
		if strings.Contains(err.Error(), "not answered") || strings.Contains(err.Error(), "already exists") {
			k.t.Errorf("pod %d: %v", i, err)
		}
	}
	for what, fn := range map[string]func(context.Context) error{
		"remove": func(ctx context.Context) error {
			_, err := k.rt().RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		},
	} {
		if pod == "" {
			continue
		}
		if err := k.ask(what, fn); err != nil {
			k.t.Errorf("%s pod %d (%s): %v", what, i, pod, err)
		}
	}
}
