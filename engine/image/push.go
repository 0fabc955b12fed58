package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/engine/image/registry"
	"github.com/berthd/berth/store"
)

// PushRequest sends an image to a registry.
type PushRequest struct {
	Name     string             // of the image here; "" with Target set
	Target   ocispec.Descriptor // what to send; zero: what Name points to
	Ref      imageref.Reference // where to
	Choice   Choice
	Registry registry.Options
	Watch    Watcher
}

// Push sends an image: children before what names them, manifests last. Of an
// index whose platforms are not all here, it is an error to send it whole; say
// which platform to send.
func (i *Images) Push(ctx context.Context, v store.Scoped, r PushRequest) error {
	if r.Target.Digest == "" {
		im, err := store.Get(ctx, v, func(tx *store.Tx) (store.Image, error) { return tx.Image(r.Name) })
		if err != nil {
			return err
		}
		r.Target = im.Target
	}
	if r.Watch == nil {
		r.Watch = func(Progress) {}
	}
	t := i.transfer(v, r.Name, r.Watch)
	remote, err := i.cfg.Registry.Open(r.Ref, r.Registry)
	if err != nil {
		return err
	}
	t.remote = nil // everything is read from the store
	p := &pushing{transfer: t, to: remote, slots: make(chan struct{}, i.cfg.Uploads)}
	t.meter.note("pushing content", r.Name)
	err = t.metered(ctx, func(ctx context.Context) error {
		root, err := p.pick(ctx, r.Target, r.Choice)
		if err != nil {
			return err
		}
		return p.push(ctx, root, r.Ref.Tag, 0)
	})
	if err != nil {
		return fmt.Errorf("push %s: %w", r.Ref, err)
	}
	t.meter.note("pushed content", r.Name)
	return nil
}

type pushing struct {
	*transfer
	to    *registry.Remote
	slots chan struct{}
}

// pick returns what is sent: one platform of an index is sent as its manifest.
func (p *pushing) pick(ctx context.Context, d ocispec.Descriptor, c Choice) (ocispec.Descriptor, error) {
	if !isIndex(d.MediaType) || len(c.Platforms) == 0 {
		return d, nil
	}
	data, err := p.document(ctx, d)
	if err != nil {
		return d, err
	}
	kids, err := children(d, data)
	if err != nil {
		return d, err
	}
	want, _ := c.choose(kids)
	if len(want) == 0 {
		return d, c.noMatch(p.parent, kids)
	}
	if len(want) == 1 || c.Limit == 1 {
		return want[0], nil
	}
	return d, errs.New(errs.FailedPrecondition, "%d manifests match: name one platform, or none to send all", len(want))
}

func (p *pushing) push(ctx context.Context, d ocispec.Descriptor, tag string, depth int) error {
	if depth > maxDepth {
		return errs.New(errs.InvalidArgument, "%s: indexes are nested deeper than %d", d.Digest, maxDepth)
	}
	if !isIndex(d.MediaType) && !isManifest(d.MediaType) {
		return p.blob(ctx, d)
	}
	data, err := p.document(ctx, d)
	if errs.Is(err, errs.NotFound) {
		return errs.New(errs.NotFound, "manifest %s is not here: pull the image with all its platforms, or push one with --platform: %w", d.Digest, err)
	}
	if err != nil {
		return err
	}
	if there, err := p.to.ManifestExists(ctx, d, tag); err == nil && there {
		p.meter.end(p.meter.start("already exists", d, p.parent), "already exists")
		return nil
	}
	kids, err := children(d, data)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, k := range kids {
		if isForeign(k.MediaType) {
			continue
		}
		g.Go(func() error { return p.push(gctx, k, "", depth+1) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	j := p.meter.start("uploading", d, p.parent)
	if err := p.to.PutManifest(ctx, d, data, tag); err != nil {
		return err
	}
	p.meter.end(j, "complete")
	return p.sent(ctx, d)
}

func (p *pushing) blob(ctx context.Context, d ocispec.Descriptor) error {
	j := p.meter.start("waiting", d, p.parent)
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	from, err := p.mountable(ctx, d.Digest)
	if errs.Is(err, errs.NotFound) {
		if there, _ := p.to.BlobExists(ctx, d); there {
			p.meter.end(j, "already exists")
			return nil
		}
		return errs.New(errs.NotFound, "content %s is not here, and not in the registry: pull the image again first: %w", d.Digest, err)
	}
	if err != nil {
		return err
	}
	p.meter.turn(j, "uploading")
	how, err := p.to.PushBlob(ctx, d, registry.SourceFunc(func(offset int64) (io.ReadCloser, error) {
		f, err := p.v.OpenContent(ctx, d.Digest)
		if err != nil {
			return nil, err
		}
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		j.done.Store(offset)
		return counted{f, j}, nil
	}), from...)
	if err != nil {
		return fmt.Errorf("send %s: %w", d.Digest, err)
	}
	if how == registry.Uploaded {
		p.meter.end(j, "complete")
	} else {
		p.meter.end(j, "already exists")
	}
	return p.sent(ctx, d)
}

// counted lets a job count what is read from content.
type counted struct {
	io.ReadCloser
	j *job
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.j.done.Add(int64(n))
	return n, err
}

// mountable lists the repositories of the target's registry that are known to
// have the blob, the most alike first.
func (p *pushing) mountable(ctx context.Context, dg digest.Digest) ([]string, error) {
	c, err := store.Get(ctx, p.v, func(tx *store.Tx) (store.Content, error) { return tx.Content(dg) })
	if err != nil {
		return nil, err
	}
	ref := p.to.Ref()
	var out []string
	for _, repo := range strings.Split(c.Labels[label.Source(ref.Host)], ",") {
		if repo != "" && repo != ref.Path {
			out = append(out, repo)
		}
	}
	slices.SortStableFunc(out, func(a, b string) int { return alike(b, ref.Path) - alike(a, ref.Path) })
	return out, nil
}

// alike counts the leading path elements that two repositories share.
func alike(a, b string) int {
	as, bs := strings.Split(a, "/"), strings.Split(b, "/")
	n := 0
	for n < len(as) && n < len(bs) && as[n] == bs[n] {
		n++
	}
	return n
}

// sent remembers that the registry has the content now.
func (p *pushing) sent(ctx context.Context, d ocispec.Descriptor) error {
	ref := p.to.Ref()
	return p.v.Update(ctx, func(tx *store.Tx) error {
		c, err := tx.Content(d.Digest)
		if err != nil {
			return errs.Ignore(err, errs.NotFound)
		}
		key := label.Source(ref.Host)
		list := addRepo(c.Labels[key], ref.Path)
		if list == c.Labels[key] || len(key)+len(list) > label.MaxBytes {
			return nil
		}
		c.Labels = label.Update(c.Labels, map[string]string{key: list})
		_, err = tx.UpdateContent(c)
		return err
	})
}
