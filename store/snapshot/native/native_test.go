package native

import (
	"testing"

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
