package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/base/id"
)

// Owner is a daemon among those that may use the same networks. The ids of its pods
// end in its mark, and plugins keep pod ids in their records: so each daemon knows
// its own leftovers there, and leaves those of others alone, also those of programs
// that know nothing of marks.
//
//	64 hex digits: 52 random, 12 of the owner
type Owner struct{ mark string }

const (
	idBytes   = 32
	markBytes = 6
)

// NewOwner returns the owner that the daemon's root directory stands for. It
// is the same after the directory was emptied: addresses that it held are found
// again then.
func NewOwner(root string) Owner {
	if p, err := filepath.EvalSymlinks(root); err == nil {
		root = p
	}
	sum := sha256.Sum256([]byte("berth " + filepath.Clean(root)))
	return Owner{hex.EncodeToString(sum[:markBytes])}
}

// NewID makes a pod's id that carries the mark.
func (o Owner) NewID() string { return id.New(idBytes-len(o.mark)/2) + o.mark }

// Owns reports whether an id carries the mark.
func (o Owner) Owns(id string) bool {
	return o.mark != "" && len(id) == 2*idBytes && strings.HasSuffix(id, o.mark)
}
