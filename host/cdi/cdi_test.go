package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/base/errs"
)

const gpu = `{"cdiVersion":"0.6.0","kind":"vendor.com/gpu","devices":[{"name":"0","containerEdits":{
	"env":["GPU=0"],"deviceNodes":[{"path":"/dev/null"}],"mounts":[{"hostPath":"/usr/lib","containerPath":"/gpu","options":["ro"]}]}}]}`

func TestInject(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vendor.json"), []byte(gpu), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
	if err := Inject(s, []string{dir}, []string{"vendor.com/gpu=0"}); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Process.Env, "GPU=0") || len(s.Linux.Devices) != 1 || len(s.Mounts) != 1 {
		t.Errorf("the spec has %+v, %+v, %+v", s.Process.Env, s.Linux.Devices, s.Mounts)
	}
	err := Inject(s, []string{dir}, []string{"vendor.com/gpu=1"})
	if !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "vendor.com/gpu=1") {
		t.Errorf("a device that is not there: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Inject(s, []string{dir}, []string{"vendor.com/gpu=1"}); err == nil || !strings.Contains(err.Error(), "broken.json") {
		t.Errorf("a broken file is not named: %v", err)
	}
	if err := Inject(s, []string{dir}, []string{"vendor.com/gpu=0"}); err != nil {
		t.Errorf("a broken file of another vendor: %v", err)
	}
}

func TestFromAnnotations(t *testing.T) {
	got, err := FromAnnotations(map[string]string{"cdi.k8s.io/b": "v.com/c=1,v.com/c=2", "cdi.k8s.io/a": "v.com/c=1", "x": "y"})
	if err != nil || !slices.Equal(got, []string{"v.com/c=1", "v.com/c=2"}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := FromAnnotations(map[string]string{"cdi.k8s.io/b": "x"}); !errs.Is(err, errs.InvalidArgument) {
		t.Errorf("nonsense: %v", err)
	}
}
