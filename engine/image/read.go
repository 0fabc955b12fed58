package image

import (
	"context"
	"encoding/json"
	"io"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/store"
)

// Info is what an image is once it is opened.
type Info struct {
	store.Image
	Manifest ocispec.Descriptor
	Config   ocispec.Descriptor
	Spec     ocispec.Image
	ChainID  string // of its top layer; "" if it has none
	Size     int64  // bytes of manifest, config and layers as they are fetched
}

// Open reads the best manifest and config of an image for the platforms chosen.
func (i *Images) Open(ctx context.Context, v store.Scoped, im store.Image, c Choice) (Info, error) {
	t := i.transfer(v, im.Name, func(Progress) {})
	out := Info{Image: im}
	best, err := t.best(ctx, im.Target, c, 0)
	if err != nil {
		return out, err
	}
	out.Manifest, out.Config, out.Spec = best.manifest, best.config, best.spec
	if ids := chainIDs(best.spec.RootFS.DiffIDs); len(ids) > 0 {
		out.ChainID = ids[len(ids)-1].String()
	}
	out.Size = best.manifest.Size + best.config.Size
	for _, l := range best.layers {
		out.Size += l.Size
	}
	return out, nil
}

// best finds the first image below a descriptor that matches and is here.
func (t *transfer) best(ctx context.Context, d ocispec.Descriptor, c Choice, depth int) (image, error) {
	if depth > maxDepth {
		return image{}, errs.New(errs.InvalidArgument, "%s: indexes are nested deeper than %d", d.Digest, maxDepth)
	}
	data, err := t.read(ctx, d)
	if err != nil {
		return image{}, err
	}
	kids, err := children(d, data)
	if err != nil {
		return image{}, err
	}
	switch {
	case isManifest(d.MediaType):
		config, err := t.read(ctx, kids[0])
		if err != nil {
			return image{}, err
		}
		im, err := checkImage(d, kids, config)
		if err == nil && len(c.Platforms) > 0 && !c.matcher().Match(im.platform()) {
			err = c.noMatch(t.parent, []ocispec.Descriptor{{Platform: ptr(im.platform())}})
		}
		return im, err
	case isIndex(d.MediaType):
		want, _ := c.choose(kids)
		err = c.noMatch(t.parent, kids)
		for _, k := range want {
			var im image
			if im, err = t.best(ctx, k, c, depth+1); !errs.Is(err, errs.NotFound) {
				return im, err
			}
		}
		return image{}, err
	}
	return image{}, errs.New(errs.InvalidArgument, "%s is a %s, no image", d.Digest, d.MediaType)
}

// read returns a small blob of the store and changes nothing.
func (t *transfer) read(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	f, err := t.v.OpenContent(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	if f.Size > maxDocument {
		return nil, errs.New(errs.ResourceExhausted, "%s has %d bytes, at most %d are read", d.Digest, f.Size, maxDocument)
	}
	return io.ReadAll(f)
}

// Platforms lists the platforms of an image whose manifests are here.
func (i *Images) Platforms(ctx context.Context, v store.Scoped, d ocispec.Descriptor) ([]ocispec.Platform, error) {
	t := i.transfer(v, "", func(Progress) {})
	data, err := t.read(ctx, d)
	if err != nil {
		return nil, err
	}
	kids, err := children(d, data)
	if err != nil {
		return nil, err
	}
	if isManifest(d.MediaType) {
		var spec ocispec.Image
		config, err := t.read(ctx, kids[0])
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(config, &spec); err != nil {
			return nil, errs.New(errs.InvalidArgument, "config %s: %v", kids[0].Digest, err)
		}
		return []ocispec.Platform{platforms.Normalize(spec.Platform)}, nil
	}
	var out []ocispec.Platform
	for _, k := range kids {
		if k.Platform == nil || attestation(k) {
			continue
		}
		if _, err := t.read(ctx, k); err == nil {
			out = append(out, *k.Platform)
		}
	}
	return out, nil
}
