package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/store/snapshot"
	"github.com/berthd/berth/store/snapshot/drivertest"
)

func TestDriver(t *testing.T) {
	drivertest.Run(t, func(t *testing.T, root string) snapshot.Driver {
		d, err := New(root)
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}

// TestOddRoot has the driver live in a directory whose name is full of overlay's
// separators, with few and with many layers.
func TestOddRoot(t *testing.T) {
	root := filepath.Join(t.TempDir(), `a:b,c\d e`)
	d, err := New(root)
	if err != nil {
		t.Fatal(err)
	}
	var parents []uint64
	for id := uint64(1); id <= 100; id++ {
		l := snapshot.Layer{ID: id, Kind: snapshot.Active, Parents: parents}
		if err := d.Make(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		mounts, err := d.Mounts(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		err = mount.Temp(t.Context(), mounts, func(root string) error {
			if seen, err := os.ReadDir(root); err != nil || len(seen) != len(parents) {
				t.Fatalf("%d parents: %d files, %v", len(parents), len(seen), err)
			}
			return os.WriteFile(filepath.Join(root, fmt.Sprint(id)), nil, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		parents = append([]uint64{id}, parents...)
	}
}
