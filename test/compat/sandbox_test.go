package compat

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/test/lab"
)

// TestSandboxAPI drives the sandbox service itself: the life of a sandbox, the same
// sandbox after the daemon was killed, the death of its shim, and bad input.
func TestSandboxAPI(t *testing.T) {
	l := lab.New(t)
	d := l.Daemon()
	ns := fmt.Sprintf("box-%d", os.Getpid())
	dial := func() (api.StoreClient, api.ControllerClient, context.Context) {
		conn, err := d.Dial()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", ns), time.Minute)
		t.Cleanup(cancel)
		return api.NewStoreClient(conn), api.NewControllerClient(conn), ctx
	}
	store, ctl, ctx := dial()
	bring := func(id string) {
		t.Helper()
		meta := &types.Sandbox{SandboxID: id, Sandboxer: "shim", Runtime: &types.Sandbox_Runtime{Name: "io.containerd.runc.v2"}, Spec: &anypb.Any{Value: []byte("{}")},
			Labels: map[string]string{"k": "v"}}
		if _, err := store.Create(ctx, &api.StoreCreateRequest{Sandbox: meta}); err != nil {
			t.Fatal(err)
		}
		if _, err := ctl.Create(ctx, &api.ControllerCreateRequest{SandboxID: id, Sandbox: meta, Sandboxer: "shim"}); err != nil {
			t.Fatal(err)
		}
		if r, err := ctl.Start(ctx, &api.ControllerStartRequest{SandboxID: id, Sandboxer: "shim"}); err != nil || r.Pid == 0 {
			t.Fatalf("start: %v, %v", r, err)
		}
	}
	state := func(id string) *api.ControllerStatusResponse {
		t.Helper()
		r, err := ctl.Status(ctx, &api.ControllerStatusRequest{SandboxID: id, Sandboxer: "shim"})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	code := func(what string, err error, want codes.Code) {
		t.Helper()
		if status.Code(err) != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	drop := func(id string) {
		t.Helper()
		if _, err := store.Delete(ctx, &api.StoreDeleteRequest{SandboxID: id}); err != nil {
			t.Error(err)
		}
	}

	bring("one")
	if r := state("one"); r.State != "SANDBOX_READY" || r.Pid == 0 || r.Version != 3 || r.Address == "" {
		t.Errorf("status %v", r)
	}
	_, err := ctl.Create(ctx, &api.ControllerCreateRequest{SandboxID: "one", Sandboxer: "shim"})
	code("again", err, codes.AlreadyExists)
	_, err = ctl.Create(ctx, &api.ControllerCreateRequest{SandboxID: "x"})
	code("no sandboxer", err, codes.InvalidArgument)
	_, err = ctl.Start(ctx, &api.ControllerStartRequest{SandboxID: "x", Sandboxer: "nobody"})
	code("unknown sandboxer", err, codes.NotFound)
	_, err = ctl.Start(ctx, &api.ControllerStartRequest{SandboxID: "x", Sandboxer: "shim"})
	code("unknown sandbox", err, codes.NotFound)
	if _, err := ctl.Stop(ctx, &api.ControllerStopRequest{SandboxID: "x", Sandboxer: "shim"}); err != nil {
		t.Errorf("stop of a sandbox that is not there: %v", err)
	}
	if r := state("x"); r.ExitedAt == nil {
		t.Errorf("status of a sandbox that is not there: %v", r)
	}
	if r, err := store.Update(ctx, &api.StoreUpdateRequest{Sandbox: &types.Sandbox{SandboxID: "one", Labels: map[string]string{"a": "b"}}, Fields: []string{"labels.a"}}); err != nil ||
		r.Sandbox.Labels["a"] != "b" || r.Sandbox.Labels["k"] != "v" {
		t.Errorf("update: %v, %v", r, err)
	}

	// The daemon dies; the sandbox does not.
	pid := state("one").Pid
	d.Kill()
	d.Start()
	store, ctl, ctx = dial()
	if r := state("one"); r.State != "SANDBOX_READY" || r.Pid != pid {
		t.Errorf("after kill -9 of the daemon: %v, was pid %d", r, pid)
	}
	waited := wait(ctx, ctl, "one")
	if _, err := ctl.Stop(ctx, &api.ControllerStopRequest{SandboxID: "one", Sandboxer: "shim", TimeoutSecs: 1}); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("wait: %v", err)
	}
	if r := state("one"); r.State != "SANDBOX_NOTREADY" || r.ExitedAt == nil {
		t.Errorf("stopped: %v", r)
	}
	if _, err := ctl.Shutdown(ctx, &api.ControllerShutdownRequest{SandboxID: "one", Sandboxer: "shim"}); err != nil {
		t.Error(err)
	}
	drop("one")

	// The shim dies: who waits is told, and nothing of the sandbox stays.
	bring("two")
	waited = wait(ctx, ctl, "two")
	if err := syscall.Kill(int(state("two").Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("wait for a sandbox whose shim died: %v", err)
	}
	lab.Until(t, 10*time.Second, "the dead sandbox is gone", func() bool { return state("two").State == "" })
	drop("two")

	// The shim dies while the daemon is away.
	bring("three")
	pid = state("three").Pid
	d.Kill()
	if err := syscall.Kill(int(pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.Start()
	store, ctl, ctx = dial()
	lab.Until(t, 10*time.Second, "the dead sandbox is gone", func() bool { return state("three").State == "" })
	drop("three")
	if r, err := store.List(ctx, &api.StoreListRequest{}); err != nil || len(r.List) > 0 {
		t.Errorf("left: %v, %v", r, err)
	}
}

// wait waits for a sandbox's end, from now on.
func wait(ctx context.Context, ctl api.ControllerClient, id string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := ctl.Wait(ctx, &api.ControllerWaitRequest{SandboxID: id, Sandboxer: "shim"})
		done <- err
	}()
	time.Sleep(200 * time.Millisecond) // so that it waits
	return done
}
