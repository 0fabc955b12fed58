// Package spec describes things that one tier asks another to make: plain values
// with the field's usual meaning, no behaviour that touches the machine.
package spec

// Mount is one mount to be made, as snapshot drivers return them and shims take
// them (containerd.types.Mount).
type Mount struct {
	Type    string   // file system type, or "bind"
	Source  string   // device, directory, or the type's name
	Target  string   // path inside the root file system; "" is the root itself
	Options []string // mount(8) options: "ro", "rbind", "lowerdir=…"
}

// Whiteout says how a directory that is filled from a layer's tar stream marks
// what its parents have and it has not.
type Whiteout uint8

// The ways to mark a deletion.
const (
	WhiteoutOverlay     Whiteout = iota // character device 0:0, trusted.overlay.opaque on directories
	WhiteoutRemove                      // the directory holds the parents' files: delete them
	WhiteoutOverlayUser                 // as WhiteoutOverlay with user.overlay.opaque: overlay is mounted with userxattr
)

// Any is a payload that is handed on and not read: a type URL and its bytes
// (google.protobuf.Any).
type Any struct {
	TypeURL string
	Value   []byte
}

// Empty reports whether there is no payload.
func (a Any) Empty() bool { return a.TypeURL == "" && len(a.Value) == 0 }
