package cri

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/pod"
	"github.com/berthd/berth/store"
)

func TestListPods(t *testing.T) {
	mk := func(id string, s store.PodState, labels map[string]string) *pod.Pod {
		return &pod.Pod{ID: id, State: s, Config: &api.PodSandboxConfig{Metadata: &api.PodSandboxMetadata{Name: id}, Labels: labels}}
	}
	all := []*pod.Pod{mk("aa1", store.PodReady, map[string]string{"x": "1"}), mk("aa2", store.PodStopped, nil), mk("bb1", store.PodRemoving, map[string]string{"x": "2"})}
	ready := &api.PodSandboxStateValue{State: api.PodSandboxState_SANDBOX_READY}
	gone := &api.PodSandboxStateValue{State: api.PodSandboxState_SANDBOX_NOTREADY}
	for _, c := range []struct {
		f    *api.PodSandboxFilter
		want string
	}{
		{nil, "[aa1 aa2 bb1]"}, {&api.PodSandboxFilter{Id: "aa"}, "[aa1 aa2]"}, {&api.PodSandboxFilter{State: ready}, "[aa1]"},
		{&api.PodSandboxFilter{State: gone}, "[aa2 bb1]"}, {&api.PodSandboxFilter{LabelSelector: map[string]string{"x": "2"}}, "[bb1]"},
		{&api.PodSandboxFilter{LabelSelector: map[string]string{"y": ""}}, "[]"},
	} {
		var ids []string
		for _, p := range listPods(all, c.f) {
			ids = append(ids, p.GetId())
		}
		if got := fmt.Sprint(ids); got != c.want {
			t.Errorf("%v: %s, want %s", c.f, got, c.want)
		}
	}
}

func TestContainerState(t *testing.T) {
	ended := &pod.Container{State: store.ContainerRemoving}
	ended.FinishedAt = time.Unix(1, 0)
	for _, c := range []struct {
		c    *pod.Container
		want api.ContainerState
	}{
		{&pod.Container{State: store.ContainerCreated}, api.ContainerState_CONTAINER_CREATED},
		{&pod.Container{State: store.ContainerRunning}, api.ContainerState_CONTAINER_RUNNING},
		{&pod.Container{State: store.ContainerExited}, api.ContainerState_CONTAINER_EXITED},
		{ended, api.ContainerState_CONTAINER_EXITED},
		{&pod.Container{State: store.ContainerRemoving}, api.ContainerState_CONTAINER_UNKNOWN},
	} {
		if got := containerState(c.c); got != c.want {
			t.Errorf("%s: %s, want %s", c.c.State, got, c.want)
		}
	}
}

func TestImageUser(t *testing.T) {
	for user, want := range map[string]string{
		"": "", "0": "uid 0", "1000": "uid 1000", "1000:100": "uid 1000", "www-data": "name www-data", "www-data:33": "name www-data", "-1": "name -1",
		"4294967296": "name 4294967296",
	} {
		uid, name := imageUser(user)
		got := ""
		if uid != nil {
			got = fmt.Sprint("uid ", uid.GetValue())
		} else if name != "" {
			got = "name " + name
		}
		if got != want {
			t.Errorf("%q: %q, want %q", user, got, want)
		}
	}
}

func TestCredential(t *testing.T) {
	c, err := credential(&api.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte("me:se:cret"))})
	if err != nil || c.Username != "me" || c.Secret != "se:cret" {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := credential(nil); err != nil || !c.Empty() {
		t.Errorf("none: %+v, %v", c, err)
	}
	for _, bad := range []string{"%%%", base64.StdEncoding.EncodeToString([]byte("nocolon"))} {
		if _, err := credential(&api.AuthConfig{Auth: bad}); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestSeconds(t *testing.T) {
	for n, want := range map[int64]time.Duration{-1: 0, 0: 0, 30: 30 * time.Second, math.MaxInt64: math.MaxInt64 / time.Second * time.Second} {
		if got := seconds(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestInBatches(t *testing.T) {
	all := make([]int, 2*batch+1)
	var sizes []int
	if err := inBatches(all, func(some []int) error { sizes = append(sizes, len(some)); return nil }); err != nil || fmt.Sprint(sizes) != fmt.Sprint([]int{batch, batch, 1}) {
		t.Errorf("%v, %v", sizes, err)
	}
	stop := errors.New("stop")
	if err := inBatches(all, func([]int) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	if err := inBatches(nil, func([]int) error { t.Error("an empty message"); return nil }); err != nil {
		t.Error(err)
	}
}
