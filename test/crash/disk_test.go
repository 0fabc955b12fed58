package crash

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/test/lab"
)

// smallDisk mounts a file system of so many MiB where the daemon keeps its root.
func smallDisk(t *testing.T, l *lab.Lab, dir, mib string) {
	t.Helper()
	file := dir + ".img"
	lab.Run(t, "truncate", "-s", mib+"M", file)
	lab.Run(t, "mkfs.ext4", "-q", "-m", "0", file)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lab.Run(t, "mount", "-o", "loop", file, dir)
	l.Ledger().Mounted(dir)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("unmount the small disk: %v %s", err, out)
		}
	})
}

// fill writes a file until the disk has no room, and leaves so many bytes.
func fill(t *testing.T, path string, leave int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, block := range []int{1 << 20, 4 << 10} {
		buf := make([]byte, block)
		for {
			if _, err := f.Write(buf); err != nil {
				break
			}
		}
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = f.Truncate(max(0, end-leave))
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk lets the disk run full under a pull, and under everything: each
// error says so, nothing is damaged, and all goes on when there is room again.
func TestFullDisk(t *testing.T) {
	l := lab.New(t)
	smallDisk(t, l, filepath.Join(l.Dir, "root"), "64")
	p := placeIn(t, l)
	p.pull(p.busybox)
	filler := filepath.Join(p.Dir, "root", "filler")
	full := func(what string, args ...string) {
		t.Helper()
		out, err := p.d.Ctr(args...)
		if err == nil {
			t.Errorf("%s on a full disk: no error\n%s", what, out)
		}
		if text := strings.ToLower(out); !strings.Contains(text, "no space left") && !strings.Contains(text, "disk is full") {
			t.Errorf("%s on a full disk: the error does not say so: %s", what, out)
		}
	}
	id := p.Name("full")
	fill(t, filler, 4<<20)
	full("a pull", "images", "pull", "--plain-http", p.layered)
	fill(t, filler, 0)
	full("a pull", "images", "pull", "--plain-http", p.layered)
	if _, err := p.d.Ctr("run", "--rm", p.busybox, id, "echo", "it works"); err != nil {
		full("a run", "run", "--rm", p.busybox, id, "echo", "it works")
	}
	p.d.MustCtr("images", "ls")
	// It also starts on a full disk, and shows what there is.
	p.d.Kill()
	p.restart()
	if out := p.d.MustCtr("images", "ls", "-q"); !strings.Contains(out, p.busybox) {
		t.Errorf("the image is gone: %q", out)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	p.giveUp(id)
	p.run(p.busybox, id)
	p.pull(p.layered)
	p.whole(p.Name("whole"))
	p.removeImage(p.layered)
	p.removeImage(p.busybox)
	p.giveUp()
	p.nothing(false)
}
