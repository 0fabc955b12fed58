package blockio

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

func TestClass(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"da", "db"} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(100+i)))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "dc"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "classes.yaml")
	text := strings.ReplaceAll(`
Classes:
  slow:
  - Weight: 80
  - Devices: [DIR/d*]
    Weight: 50
    ThrottleReadBps: 60M
    ThrottleWriteIOPS: "5k"
  - Devices: [DIR/da, DIR/da]
    ThrottleWriteBps: 1.5Mi
  gone:
  - Devices: [DIR/x]
    ThrottleReadIOPS: 7
`, "DIR", dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Class("slow")
	if err != nil {
		t.Fatal(err)
	}
	if *b.Weight != 80 || len(b.WeightDevice) != 2 || *b.WeightDevice[0].Weight != 50 || b.WeightDevice[1].Minor != 101 {
		t.Errorf("weights: %+v", b)
	}
	if len(b.ThrottleReadBpsDevice) != 2 || b.ThrottleReadBpsDevice[0].Rate != 60e6 || b.ThrottleReadBpsDevice[0].Major != 7 || len(b.ThrottleReadIOPSDevice) != 0 ||
		len(b.ThrottleWriteIOPSDevice) != 2 || b.ThrottleWriteIOPSDevice[1].Rate != 5000 || len(b.ThrottleWriteBpsDevice) != 1 || b.ThrottleWriteBpsDevice[0].Rate != 3<<19 {
		t.Errorf("limits: %+v", b)
	}
	if _, err := c.Class("gone"); !errs.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), dir+"/x") {
		t.Errorf("a device that is not there: %v", err)
	}
	if _, err := c.Class("none"); !errs.Is(err, errs.InvalidArgument) {
		t.Errorf("a class that is not there: %v", err)
	}
}

func TestRefused(t *testing.T) {
	for _, text := range []string{
		"Classes: 5", "Classes: {a: [{Weight: 5}]}", "Classes: {a: [{Weight: 5000}]}", "Classes: {a: [{ThrottleReadBps: 5}]}", "Classes: {a: [{Devices: [x], Weight: 50}]}",
		"Classes: {a: [{Devices: ['/dev/[a'], Weight: 50}]}", "Classes: {a: [{Devices: [/dev/x], ThrottleReadBps: 5X}]}", "Classes: {a: [{Devices: [/dev/x], ThrottleReadBps: -5}]}",
		"Classes: {a: [{Speed: 5}]}", "Classes: {a: [{Devices: [/dev/x], ThrottleReadBps: 1e30}]}", "Classes: {a: [{Devices: [/dev/x], ThrottleReadBps: NaN}]}",
	} {
		if all, err := read([]byte(text)); err == nil {
			t.Errorf("%s: %+v", text, all)
		}
	}
	if _, err := Load("/nonexistent"); err == nil {
		t.Error("no file")
	}
}

func FuzzRead(f *testing.F) {
	f.Add("Classes: {a: [{Weight: 50, Devices: [/dev/x], ThrottleReadBps: 5k}]}")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := read([]byte(text))
		for _, rules := range all {
			for _, r := range rules {
				if err == nil && r.Weight != nil && *r.Weight > maxWeight {
					t.Errorf("weight %d", *r.Weight)
				}
			}
		}
	})
}
