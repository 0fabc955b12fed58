package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/engine/image/registry"
	"github.com/berthd/berth/store"
)

// PullRequest asks for an image of a registry.
type PullRequest struct {
	Ref      imageref.Reference
	Names    []string // under which it is stored; empty: the reference in full
	Labels   map[string]string
	Choice   Choice
	Unpack   []Target
	Registry registry.Options
	Client   string // tells apart callers whose credentials must not be mixed
	Watch    Watcher
	More     []NameRule // more names for it
	ByConfig bool       // also under the digest of its config, as CRI keeps images
}

// Pull brings an image in: resolve, verify, fetch and unpack in one pass, and one
// transaction that writes its names. Who asks for the same thing meanwhile shares
// the transfer.
func (i *Images) Pull(ctx context.Context, v store.Scoped, r PullRequest) (store.Image, error) {
	if len(r.Names) == 0 {
		r.Names = []string{r.Ref.String()}
	}
	key, err := json.Marshal([]any{v.Namespace(), r.Ref.String(), r.Names, r.More, r.ByConfig, r.Choice, r.Unpack, r.Client, r.Labels})
	if err != nil {
		return store.Image{}, err
	}
	im, err := i.pulls.do(ctx, string(key), r.Watch, func(ctx context.Context, tell Watcher) (im store.Image, err error) {
		start := time.Now()
		i.tallies.Pulling.Add(1)
		defer i.tallies.Pulling.Add(-1)
		err = i.leased(ctx, v, "pull "+r.Ref.String(), func(v store.Scoped) error {
			im, err = i.pull(ctx, v, r, tell)
			return err
		})
		if err != nil {
			i.tallies.Failed.Add(1)
		} else {
			i.tallies.Pulls.Since(start)
		}
		return im, err
	})
	if err != nil {
		return im, fmt.Errorf("pull %s: %w", r.Ref, err)
	}
	return im, nil
}

// transfer is one run of bringing content in: from a registry, or, with remote
// nil, from what is there already.
type transfer struct {
	*Images
	v      store.Scoped
	remote *registry.Remote
	source map[string]string // labels that say where blobs come from
	meter  *meter
	parent string // name of the whole, for progress
	slots  chan struct{}
}

func (i *Images) transfer(v store.Scoped, parent string, tell Watcher) *transfer {
	return &transfer{Images: i, v: v, meter: &meter{tell: tell}, parent: parent, slots: make(chan struct{}, i.cfg.Downloads)}
}

func (i *Images) pull(ctx context.Context, v store.Scoped, r PullRequest, tell Watcher) (store.Image, error) {
	t := i.transfer(v, r.Names[0], tell)
	t.meter.note("Resolving from "+r.Ref.Host, r.Names[0])
	desc, remote, err := i.cfg.Registry.Resolve(ctx, r.Ref, r.Registry)
	if err != nil {
		return store.Image{}, err
	}
	if err := i.cfg.Verifiers.Check(ctx, r.Ref.String(), desc); err != nil {
		return store.Image{}, err
	}
	t.remote = remote
	t.source = map[string]string{label.Source(r.Ref.Host): r.Ref.Path}
	t.meter.note("Pulling from "+r.Ref.Host, r.Names[0])
	var best image
	err = t.metered(ctx, func(ctx context.Context) (err error) {
		best, err = t.bring(ctx, desc, r.Choice, r.Unpack)
		return err
	})
	if err != nil {
		return store.Image{}, err
	}
	im, err := i.name(ctx, v, desc, best, r)
	if err == nil {
		t.meter.note("Completed pull from "+r.Ref.Host, r.Names[0])
	}
	return im, err
}

// metered runs fn and tells of its bytes meanwhile.
func (t *transfer) metered(ctx context.Context, fn func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	g.Go(func() error { t.meter.run(ctx); return nil })
	g.Go(func() error { defer stop(); return fn(ctx) })
	return g.Wait()
}

// name writes the image under all its names, once its bytes are on the disk.
func (i *Images) name(ctx context.Context, v store.Scoped, desc ocispec.Descriptor, best image, r PullRequest) (store.Image, error) {
	first := store.Image{Name: r.Names[0], Target: plain(desc), Labels: r.Labels}
	all := []store.Image{first}
	for _, n := range r.Names[1:] {
		all = append(all, store.Image{Name: n, Target: plain(desc), Labels: r.Labels})
	}
	for _, rule := range r.More {
		name := rule.Name
		if rule.AddDigest {
			name += "@" + desc.Digest.String()
		}
		if !rule.Prefix {
			all = append(all, store.Image{Name: name, Target: plain(desc), Labels: r.Labels})
		}
	}
	if r.ByConfig && best.config.Digest != "" {
		all = append(all, store.Image{Name: best.config.Digest.String(), Target: plain(desc), Labels: r.Labels})
	}
	err := v.PromiseBytes(ctx, func(tx *store.Tx) (err error) {
		for n, im := range all {
			if im, err = tx.PutImage(im); err != nil {
				return err
			}
			if n == 0 {
				first = im
			}
		}
		return nil
	})
	return first, err
}

// plain is the descriptor as an image keeps it: what the registry said of
// platform or URLs does not belong to the name.
func plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Annotations: d.Annotations}
}

// bring fetches everything that is wanted of a descriptor's graph, unpacks the
// images in it, and returns the best one, if there is any.
func (t *transfer) bring(ctx context.Context, root ocispec.Descriptor, c Choice, targets []Target) (image, error) {
	found, err := t.walk(ctx, root, c, 0, false)
	if err != nil {
		return image{}, err
	}
	if len(found.images) == 0 && len(targets) > 0 {
		return image{}, errs.New(errs.FailedPrecondition, "%s (%s) holds no image that can be unpacked", root.Digest, root.MediaType)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, b := range found.blobs {
		g.Go(func() error { return t.fetch(ctx, b, t.parent) })
	}
	for _, im := range found.images {
		g.Go(func() error { return t.image(ctx, im, targets) })
	}
	if err := g.Wait(); err != nil {
		return image{}, err
	}
	if len(found.images) == 0 {
		return image{}, nil
	}
	return found.images[0], nil
}

// findings are what a walk over manifests found.
type findings struct {
	images []image
	blobs  []ocispec.Descriptor // layers of artifacts, and what is no image's
}

func (f *findings) add(o findings) {
	f.images = append(f.images, o.images...)
	f.blobs = append(f.blobs, o.blobs...)
}

// walk brings the manifests and configs in and lists what is below them. A bare
// document that is neither is a blob.
func (t *transfer) walk(ctx context.Context, d ocispec.Descriptor, c Choice, depth int, metadata bool) (findings, error) {
	var out findings
	if depth > maxDepth {
		return out, errs.New(errs.InvalidArgument, "%s: indexes are nested deeper than %d", d.Digest, maxDepth)
	}
	if !isIndex(d.MediaType) && !isManifest(d.MediaType) {
		out.blobs = append(out.blobs, d)
		return out, nil
	}
	data, err := t.document(ctx, d)
	if err != nil {
		return out, err
	}
	kids, err := children(d, data)
	if err != nil {
		return out, err
	}
	if isManifest(d.MediaType) {
		return t.walkManifest(ctx, d, kids, c, metadata)
	}
	want, others := c.choose(kids)
	if len(want) == 0 && !metadata {
		return out, c.noMatch(t.parent, kids)
	}
	for n, k := range append(want, others...) {
		f, err := t.walk(ctx, k, c, depth+1, metadata || n >= len(want))
		if err != nil {
			return out, err
		}
		out.add(f)
	}
	return out, nil
}

func (t *transfer) walkManifest(ctx context.Context, d ocispec.Descriptor, kids []ocispec.Descriptor, c Choice, metadata bool) (findings, error) {
	var out findings
	config := kids[0]
	if !isConfig(config.MediaType) { // an artifact: everything is a blob
		if !metadata {
			out.blobs = append(out.blobs, kids...)
		}
		return out, nil
	}
	data, err := t.config(ctx, config)
	if err != nil {
		return out, err
	}
	if metadata || attestation(d) {
		if !metadata {
			out.blobs = append(out.blobs, kids[1:]...)
		}
		return out, nil
	}
	im, err := checkImage(d, kids, data)
	if err != nil {
		return out, err
	}
	if d.Platform == nil && len(c.Platforms) > 0 && !c.matcher().Match(im.platform()) {
		return out, c.noMatch(t.parent, []ocispec.Descriptor{{Platform: ptr(im.platform())}})
	}
	out.images = append(out.images, im)
	for _, l := range kids[1:] {
		if !isLayer(l.MediaType) {
			out.blobs = append(out.blobs, l)
		}
	}
	return out, nil
}

func ptr[T any](v T) *T { return &v }

// image brings one image's layers in, and unpacks them for every target that its
// platform fits.
func (t *transfer) image(ctx context.Context, im image, targets []Target) error {
	var snapshotters []string
	for _, target := range targets {
		if target.Platform == nil || (Choice{Platforms: []ocispec.Platform{*target.Platform}}).matcher().Match(im.platform()) {
			snapshotters = append(snapshotters, t.snapshotter(target))
		}
	}
	if len(snapshotters) == 0 {
		g, ctx := errgroup.WithContext(ctx)
		for _, l := range im.layers {
			g.Go(func() error { return t.fetch(ctx, l, im.manifest.Digest.String()) })
		}
		return g.Wait()
	}
	for _, sn := range snapshotters {
		if err := t.unpack(ctx, im, sn); err != nil {
			return fmt.Errorf("unpack %s with %s: %w", im, sn, err)
		}
	}
	return nil
}

// refOf names an ingest: the same content resumes whoever asks again.
func refOf(d ocispec.Descriptor) string {
	kind := "blob"
	switch {
	case isLayer(d.MediaType):
		kind = "layer"
	case isManifest(d.MediaType):
		kind = "manifest"
	case isIndex(d.MediaType):
		kind = "index"
	case isConfig(d.MediaType):
		kind = "config"
	}
	return kind + "-" + strings.ToLower(d.Digest.String())
}

var errNoRemote = errors.New("there is nowhere to fetch it from")
