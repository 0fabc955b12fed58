// Package archive turns image layers into directories and back: it writes tar
// streams below a directory (Apply, Finish), makes them from directories (Diff,
// DiffUpper), and opens and makes the compressions of layers. Everything in a
// layer is hostile input: each step is one name below an open handle, so no entry
// and no concurrent change of the directory can reach outside. It owns nothing
// and never decides what a layer may be used for. docs/design/layers.md draws it.
package archive

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

// ApplyOptions are the style and the budgets of one Apply. A zero budget means
// its default.
type ApplyOptions struct {
	Whiteout       spec.Whiteout
	MaxHeaderBytes int64 // bytes of headers of one entry: default and at most 4 MiB
	MaxXattrBytes  int64 // names and values of one entry's extended attributes: default 1 MiB
	MaxEntries     int64 // default 16 Mi
	MaxBytes       int64 // file contents, holes counted: default 256 GiB
	MaxUnresolved  int64 // bytes of names left for Finish: default 32 MiB
}

// ApplyResult is what Apply did.
type ApplyResult struct {
	Entries    int64 // entries of the tar stream
	Size       int64 // bytes of file contents, holes counted
	Unresolved Unresolved
}

// Unresolved is what needs the layer's parents: Finish settles it.
type Unresolved struct {
	Whiteout spec.Whiteout // as given to Apply
	Dirs     []string      // directories that were implied, above before below
	Links    []Link        // hard links to files that this layer does not hold
	Root     bool          // the layer hides everything that its parents have in the root
}

// Empty reports whether there is nothing to finish.
func (u Unresolved) Empty() bool { return len(u.Dirs) == 0 && len(u.Links) == 0 && !u.Root }

// Link is a hard link that waits for its target. Names start at the layer's root.
type Link struct{ Name, Target string }

func (o ApplyOptions) withDefaults() ApplyOptions {
	set := func(v *int64, def, most int64) {
		if *v <= 0 || *v > most {
			*v = def
		}
	}
	const none = 1<<63 - 1
	set(&o.MaxHeaderBytes, 4<<20, 4<<20)
	set(&o.MaxXattrBytes, 1<<20, 4<<20)
	set(&o.MaxEntries, 16<<20, none)
	set(&o.MaxBytes, 256<<30, none)
	set(&o.MaxUnresolved, 32<<20, none)
	return o
}

// Apply writes the plain tar stream r below the directory dir, and reads r to its
// end, padding included, so that the caller's hash of it is that of the whole
// layer. Attributes of the root itself are left alone, as the peers do.
//
// Apply reads r in a goroutine and waits for it: once ctx is done, r must return.
// On error the directory holds a part of the layer. Errors of kind InvalidArgument
// say that the layer is malformed, ResourceExhausted that it is over a budget.
func Apply(ctx context.Context, dir string, r io.Reader, o ApplyOptions) (ApplyResult, error) {
	o = o.withDefaults()
	a, err := newApplier(dir, o)
	if err != nil {
		return ApplyResult{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := startStream(ctx, r, o)
	err = a.entries(ctx, s)
	if err != nil {
		cancel(err) // wakes the reader where it waits for us
	}
	err = errors.Join(s.wait(err), a.dirs.close())
	a.res.Unresolved = a.pending.list(o.Whiteout)
	return a.res, err
}

// applier writes entries, one after the other, in one goroutine.
type applier struct {
	o       ApplyOptions
	dirs    *handles
	pending pending
	own     ownFiles // WhiteoutRemove: what this layer wrote
	res     ApplyResult
	umask   uint32
	acl     bool // some directory has a default ACL: creation modes cannot be trusted
	euid    uint32
	egid    uint32
}

func newApplier(dir string, o ApplyOptions) (*applier, error) {
	umask, err := readUmask()
	if err != nil {
		return nil, err
	}
	a := &applier{o: o, umask: umask, euid: uint32(unix.Geteuid()), egid: uint32(unix.Getegid())}
	a.pending = pending{max: o.MaxUnresolved, dirs: map[string]int{}}
	if o.Whiteout == spec.WhiteoutRemove {
		a.own = newOwnFiles()
		a.acl = true // directories of the parents may have default ACLs
	}
	if a.dirs, err = openHandles(dir); err != nil {
		return nil, err
	}
	a.dirs.implied, a.dirs.opaque = a.implied, opaqueXattr(o.Whiteout)
	if n, _ := unix.Fgetxattr(a.dirs.root.fd, aclDefault, nil); n > 0 {
		a.acl = true
	}
	return a, nil
}

func (a *applier) entries(ctx context.Context, s *stream) error {
	for {
		it, ok, err := s.next(ctx)
		if err != nil || !ok {
			return err
		}
		a.res.Entries++
		a.res.Size += it.hdr.Size
		if err := a.entry(ctx, s, it); err != nil {
			return fmt.Errorf("unpack %s %q: %w", typeName(it.hdr.Typeflag), clip(it.hdr.Name), err)
		}
	}
}

// implied is called for each directory that had to be made without a header.
func (a *applier) implied(path string) error {
	a.own.add(path)
	if a.o.Whiteout == spec.WhiteoutRemove {
		return nil // the parents were there to be seen
	}
	return a.pending.addDir(path)
}

// pending collects what Finish is for, within a budget of bytes.
type pending struct {
	dirs  map[string]int // path to its turn
	turn  int
	links []Link
	root  bool
	bytes int64
	max   int64
}

func (p *pending) addDir(path string) error {
	p.turn++
	p.dirs[path] = p.turn
	return p.charge(len(path))
}

func (p *pending) addLink(l Link) error {
	p.links = append(p.links, l)
	return p.charge(len(l.Name) + len(l.Target))
}

func (p *pending) charge(n int) error {
	const each = 64 // about what a map or slice entry costs
	if p.bytes += int64(n) + each; p.bytes > p.max {
		return errs.New(errs.ResourceExhausted, "more than %d bytes of names need the layer's parents", p.max)
	}
	return nil
}

func (p *pending) list(w spec.Whiteout) Unresolved {
	return Unresolved{Whiteout: w, Dirs: byTurn(p.dirs), Links: p.links, Root: p.root}
}
