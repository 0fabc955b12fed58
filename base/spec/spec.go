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
