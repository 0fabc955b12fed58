package compat

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/lab"
)

// TestCRICheckpoint: the archive has what others read, and the container goes on.
func TestCRICheckpoint(t *testing.T) {
	lab.Tool(t, "criu")
	n := newNode(t)
	_, id := n.running("counter", "echo changed > /tmp/file; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done", nil)
	lab.Until(t, 10*time.Second, "the container counts", func() bool { return strings.Contains(n.log(n.status(id).GetLogPath()), "F 3\n") })
	path := filepath.Join(n.Dir, "checkpoint.tar")
	if _, err := n.rt().CheckpointContainer(n.ctx, &cri.CheckpointContainerRequest{ContainerId: id, Location: path, Timeout: 60}); err != nil {
		t.Fatalf("checkpoint: %v\n%s", err, n.d.Log)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"config.dump", "spec.dump", "status", "rootfs-diff.tar", "checkpoint/", "checkpoint/inventory.img", "checkpoint/pstree.img", "stats-dump", "dump.log"} {
		if _, ok := files[want]; !ok {
			t.Errorf("%s is missing", want)
		}
	}
	var config struct {
		ID        string    `json:"id"`
		Name      string    `json:"name"`
		ImageName string    `json:"rootfsImageName"`
		At        time.Time `json:"checkpointedTime"`
	}
	if err := json.Unmarshal(files["config.dump"], &config); err != nil || config.ID != id || config.Name != "c" || config.ImageName != n.image || time.Since(config.At) > time.Hour {
		t.Errorf("config.dump: %+v %v", config, err)
	}
	var spec struct{ Process struct{ Args []string } }
	if err := json.Unmarshal(files["spec.dump"], &spec); err != nil || !slices.Contains(spec.Process.Args, "sh") {
		t.Errorf("spec.dump: %+v %v", spec, err)
	}
	changed := ""
	for r := tar.NewReader(strings.NewReader(string(files["rootfs-diff.tar"]))); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		if h.Name == "tmp/file" {
			data, _ := io.ReadAll(r)
			changed = string(data)
		}
	}
	if changed != "changed\n" {
		t.Errorf("the changed file is %q", changed)
	}
	size := len(n.log(n.status(id).GetLogPath()))
	lab.Until(t, 10*time.Second, "the container counts on", func() bool { return len(n.log(n.status(id).GetLogPath())) > size+100 })
	if s := n.status(id); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after the checkpoint: %v", s)
	}
	refused := func(id, location string, code codes.Code) {
		t.Helper()
		if _, err := n.rt().CheckpointContainer(n.ctx, &cri.CheckpointContainerRequest{ContainerId: id, Location: location}); status.Code(err) != code {
			t.Errorf("checkpoint of %.12s into %q: %v, want %s", id, location, err, code)
		}
	}
	refused(id, "relative.tar", codes.InvalidArgument)
	refused(id, "", codes.InvalidArgument)
	refused("nothere", path, codes.NotFound)
	_, ended := n.running("ended", "exit 0", nil)
	n.ended(ended)
	refused(ended, path, codes.FailedPrecondition)
	if left, err := filepath.Glob(filepath.Join(n.Dir, ".checkpoint*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
