package image

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/store"
)

// Entry is an image as people and kubelets count images: one for each config, with
// all the names that lead to it.
type Entry struct {
	ID      string   // digest of the config
	Names   []string // of the rows
	Tags    []string // host/path:tag
	Digests []string // host/path@digest
	Info    Info     // of the first row
	Pinned  bool
}

// LabelPinned on an image keeps it from being collected by a kubelet.
const LabelPinned = "io.cri-containerd.pinned"

// infos remembers what images are: it follows from the target's digest, so it
// never becomes wrong.
type infos struct {
	mu  sync.Mutex
	all map[digest.Digest]Info
}

func (c *infos) get(d digest.Digest) (Info, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.all[d]
	return i, ok
}

// put keeps an info; the map is emptied when it has grown past any real node's
// number of images.
func (c *infos) put(d digest.Digest, i Info) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil || len(c.all) > 10_000 {
		c.all = map[digest.Digest]Info{}
	}
	c.all[d] = i
}

// info opens an image for this machine's platform, from memory if it was opened
// before. Content that has gone since is an error of kind NotFound.
func (i *Images) info(ctx context.Context, v store.Scoped, im store.Image) (Info, error) {
	if got, ok := i.infos.get(im.Target.Digest); ok {
		got.Image = im
		return got, nil
	}
	got, err := i.Open(ctx, v, im, HostChoice())
	if err == nil {
		i.infos.put(im.Target.Digest, got)
	}
	return got, err
}

// Catalog lists the images that this machine can run. Rows whose content is not
// whole, or which are no images, are left out.
func (i *Images) Catalog(ctx context.Context, v store.Scoped) ([]Entry, error) {
	rows, err := store.Get(ctx, v, func(tx *store.Tx) ([]store.Image, error) { return tx.Images() })
	if err != nil {
		return nil, err
	}
	return i.entries(ctx, v, rows), nil
}

func (i *Images) entries(ctx context.Context, v store.Scoped, rows []store.Image) []Entry {
	byID := map[string]*Entry{}
	var order []string
	for _, r := range rows {
		info, err := i.info(ctx, v, r)
		if err != nil {
			continue
		}
		id := info.Config.Digest.String()
		e := byID[id]
		if e == nil {
			e = &Entry{ID: id, Info: info}
			byID[id] = e
			order = append(order, id)
		}
		e.add(r)
	}
	out := make([]Entry, 0, len(order))
	for _, id := range order {
		out = append(out, *byID[id])
	}
	return out
}

func (e *Entry) add(r store.Image) {
	e.Names = append(e.Names, r.Name)
	e.Pinned = e.Pinned || r.Labels[LabelPinned] == "pinned"
	ref, err := imageref.Parse(r.Name)
	if err != nil {
		return // an id, or a client's own word
	}
	if ref.Digest != "" {
		e.Digests = addOnce(e.Digests, ref.Name()+"@"+ref.Digest.String())
		return
	}
	e.Tags = addOnce(e.Tags, r.Name)
	// A tag alone tells the digest too, whoever stored it.
	e.Digests = addOnce(e.Digests, ref.Name()+"@"+r.Target.Digest.String())
}

// DigestFor is the repository digest by which a user knows an image that was asked for as
// ref: that of the same repository, or else the first, or else the id.
func (e Entry) DigestFor(ref string) string {
	if r, err := imageref.Normalize(ref); err == nil {
		for _, d := range e.Digests {
			if strings.HasPrefix(d, r.Name()+"@") {
				return d
			}
		}
	}
	if len(e.Digests) > 0 {
		return e.Digests[0]
	}
	return e.ID
}

func addOnce(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// minIDPrefix is how many hex digits of an id are enough to mean an id.
const minIDPrefix = 6

// Find returns the image that a person or kubelet means: a name in full or in
// Docker's short form, a digest, an id or the beginning of one.
func (i *Images) Find(ctx context.Context, v store.Scoped, ref string) (Entry, error) {
	all, err := i.Catalog(ctx, v)
	if err != nil {
		return Entry{}, err
	}
	norm := ref
	if r, err := imageref.Normalize(ref); err == nil {
		norm = r.String()
	}
	for _, e := range all {
		if e.ID == ref || slices.Contains(e.Names, ref) || slices.Contains(e.Names, norm) || slices.Contains(e.Digests, norm) {
			return e, nil
		}
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	if len(hex) < minIDPrefix || strings.Trim(hex, "0123456789abcdef") != "" {
		return Entry{}, errs.New(errs.NotFound, "image %q: not found", ref)
	}
	var found []Entry
	for _, e := range all {
		if strings.HasPrefix(strings.TrimPrefix(e.ID, "sha256:"), hex) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return Entry{}, errs.New(errs.NotFound, "image %q: not found", ref)
	case 1:
		return found[0], nil
	}
	return Entry{}, errs.New(errs.InvalidArgument, "image id %q is the beginning of %d ids: give more of it", ref, len(found))
}

// Remove takes away all names of an image, and waits until its content is gone.
func (i *Images) Remove(ctx context.Context, v store.Scoped, e Entry) error {
	return i.cfg.GC.Remove(ctx, v, true, func(tx *store.Tx) error {
		for _, n := range e.Names {
			if err := errs.Ignore(tx.DeleteImage(n, ""), errs.NotFound); err != nil {
				return err
			}
		}
		return nil
	})
}

// Select lists the images that ref means: all if it is empty, none if there is none.
func (i *Images) Select(ctx context.Context, v store.Scoped, ref string) ([]Entry, error) {
	if ref == "" {
		return i.Catalog(ctx, v)
	}
	e, ok, err := i.Lookup(ctx, v, ref)
	if err != nil || !ok {
		return nil, err
	}
	return []Entry{e}, nil
}
