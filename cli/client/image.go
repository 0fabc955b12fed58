package client

import (
	"context"
	"encoding/json"
	"fmt"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
)

// Image is an image's manifest for one platform, and what it leads to.
type Image struct {
	*imagesapi.Image
	Manifest ocispec.Descriptor
	Config   ocispec.Descriptor
	Layers   []ocispec.Descriptor
	Spec     ocispec.Image
}

// Size is what the image's documents and layers have together, in bytes as stored.
func (i Image) Size() int64 {
	n := i.Manifest.Size + i.Config.Size
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// ChainID names the snapshot of the image's top layer; "" if it has none.
func (i Image) ChainID() string {
	if len(i.Spec.RootFS.DiffIDs) == 0 {
		return ""
	}
	return identity.ChainID(i.Spec.RootFS.DiffIDs).String()
}

// maxDepth is how deep indexes may be nested.
const maxDepth = 8

// Open reads the best manifest of an image that is here. An empty platform means
// this machine's.
func (c *Client) Open(ctx context.Context, im *imagesapi.Image, platform string) (Image, error) {
	match := platforms.Default()
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return Image{}, errs.New(errs.InvalidArgument, "platform %q: %w", platform, err)
		}
		match = platforms.Only(p)
	}
	t := im.GetTarget()
	d := ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}
	out, err := c.open(ctx, d, match, 0)
	if err != nil {
		return out, fmt.Errorf("image %s: %w", im.GetName(), err)
	}
	out.Image = im
	return out, nil
}

func (c *Client) open(ctx context.Context, d ocispec.Descriptor, match platforms.MatchComparer, depth int) (Image, error) {
	if depth > maxDepth {
		return Image{}, errs.New(errs.InvalidArgument, "%s: indexes are nested too deep", d.Digest)
	}
	data, err := c.Document(ctx, d.Digest.String())
	if err != nil {
		return Image{}, err
	}
	var m struct {
		Config    ocispec.Descriptor
		Layers    []ocispec.Descriptor
		Manifests []ocispec.Descriptor
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return Image{}, errs.New(errs.InvalidArgument, "%s is no manifest: %w", d.Digest, err)
	}
	if m.Config.Digest == "" {
		return c.openIndex(ctx, d, m.Manifests, match, depth)
	}
	out := Image{Manifest: d, Config: m.Config, Layers: m.Layers}
	config, err := c.Document(ctx, m.Config.Digest.String())
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(config, &out.Spec); err != nil {
		return out, errs.New(errs.InvalidArgument, "config %s: %w", m.Config.Digest, err)
	}
	if depth == 0 && !match.Match(out.Spec.Platform) {
		return out, errs.New(errs.NotFound, "it is for %s", platforms.Format(out.Spec.Platform))
	}
	return out, nil
}

func (c *Client) openIndex(ctx context.Context, d ocispec.Descriptor, all []ocispec.Descriptor, match platforms.MatchComparer, depth int) (Image, error) {
	err := errs.New(errs.NotFound, "%s has no manifest for this platform; see what it has with `berth inspect`, and pull with --platform", d.Digest)
	var best *Image
	for _, k := range all {
		if k.Platform != nil && !match.Match(*k.Platform) || k.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		if best != nil && (k.Platform == nil || !match.Less(*k.Platform, best.Spec.Platform)) {
			continue
		}
		im, oerr := c.open(ctx, k, match, depth+1)
		if oerr != nil {
			err = oerr
			continue
		}
		if match.Match(im.Spec.Platform) {
			best = &im
		}
	}
	if best != nil {
		return *best, nil
	}
	return Image{}, err
}

// OpenFirst opens the first image below the name that is here, for whatever
// platform.
func (c *Client) OpenFirst(ctx context.Context, im *imagesapi.Image) (Image, error) {
	t := im.GetTarget()
	out, err := c.open(ctx, ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}, platforms.All, 0)
	out.Image = im
	return out, err
}
