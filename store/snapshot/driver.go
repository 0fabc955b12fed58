// Package snapshot is the contract between the store, which names snapshots and
// remembers their kinds, parents and labels, and the drivers, which own one
// directory (or device) per numeric id and know nothing of names or namespaces.
package snapshot

import (
	"context"

	"github.com/berthd/berth/base/spec"
)

// Kind says what a snapshot may become.
type Kind uint8

// The kinds, with containerd's numbers.
const (
	View      Kind = 1 // read-only look at its parent
	Active    Kind = 2 // writable
	Committed Kind = 3 // sealed; may be a parent
)

// String gives the name that filters and tables use.
func (k Kind) String() string {
	switch k {
	case View:
		return "view"
	case Active:
		return "active"
	case Committed:
		return "committed"
	}
	return "unknown"
}

// Layer is all that a driver needs to know of one snapshot.
//
//	id 7 (Active)  parents [5 3]   7 is writable, above 5, above 3
type Layer struct {
	ID      uint64
	Kind    Kind
	Parents []uint64          // nearest first; all committed
	Labels  map[string]string // containerd.io/snapshot/* only
}

// Usage is what one snapshot itself takes on disk, parents not counted.
type Usage struct {
	Size   int64 // bytes
	Inodes int64
}

// Capability is a word that clients and unpack look for.
type Capability string

// The capabilities, by containerd's names.
const (
	CapRebase     Capability = "rebase"         // a layer may get its parents at Seal
	CapRemapIDs   Capability = "remap-ids"      // mounts may carry uidmap= and gidmap=
	CapOnlyRemaps Capability = "only-remap-ids" // ids are mapped by the kernel or not at all
)

// Driver makes, mounts, seals and removes snapshots in one place on this
// machine. All methods may be called concurrently for different ids; the store
// calls at most one at a time for one id. Every error names the id.
type Driver interface {
	// Root is the directory below which the driver keeps everything.
	Root() string
	// Capabilities is the same for the life of the driver.
	Capabilities() []Capability
	// Make creates the snapshot l, Active or View. Called again after a crash
	// for an id that is half made, it starts afresh.
	Make(ctx context.Context, l Layer) error
	// Mounts says how to mount l, Active or View. It never mounts.
	Mounts(ctx context.Context, l Layer) ([]spec.Mount, error)
	// Fill returns the directory that a tar stream may be written to in order to
	// fill the Active layer l without any mount, and how to write deletions
	// there; ok is false where the driver has no such directory (then use Mounts).
	// A driver with CapRebase allows it before the parents of l are filled.
	Fill(ctx context.Context, l Layer) (dir string, style spec.Whiteout, ok bool)
	// Tree returns the directory of a committed layer's own files, where the
	// driver has one that looks like Fill's.
	Tree(id uint64) (dir string, ok bool)
	// Seal ends writing: l has its final parents. It does not flush to disk:
	// whoever commits the row decides when. Sealing twice is allowed.
	Seal(ctx context.Context, l Layer) (Usage, error)
	// Usage measures l now.
	Usage(ctx context.Context, l Layer) (Usage, error)
	// Remove deletes everything of id. An id that is not there is not an error.
	// It never deletes through a mount: a busy snapshot is an error.
	Remove(ctx context.Context, id uint64) error
	// List gives the ids that have anything on disk, half made ones too.
	List(ctx context.Context) ([]uint64, error)
}
