package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
)

// Docker's media types that have an OCI twin.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar"
	ociForeign     = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

func isIndex(t string) bool    { return t == ocispec.MediaTypeImageIndex || t == dockerList }
func isManifest(t string) bool { return t == ocispec.MediaTypeImageManifest || t == dockerManifest }
func isConfig(t string) bool   { return t == ocispec.MediaTypeImageConfig || t == dockerConfig }

// isLayer reports a type that unpacks into a file system, whatever its
// compression.
func isLayer(t string) bool {
	for _, p := range []string{ociLayer, ociForeign, dockerLayer, dockerForeign} {
		if t == p || strings.HasPrefix(t, p+"+") || strings.HasPrefix(t, p+".") {
			return true
		}
	}
	return false
}

// isForeign reports a layer that registries need not have and push leaves out.
func isForeign(t string) bool {
	return strings.HasPrefix(t, ociForeign) || strings.HasPrefix(t, dockerForeign)
}

// The limits of hostile documents.
const (
	maxDepth    = 8      // indexes within indexes
	maxChildren = 10_000 // of one manifest or index
)

// children lists what a manifest or index names, in its order: config before
// layers. Other types have none.
func children(d ocispec.Descriptor, data []byte) ([]ocispec.Descriptor, error) {
	var out []ocispec.Descriptor
	switch {
	case isManifest(d.MediaType):
		var m ocispec.Manifest
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, errs.New(errs.InvalidArgument, "manifest %s: %v", d.Digest, err)
		}
		out = append([]ocispec.Descriptor{m.Config}, m.Layers...)
	case isIndex(d.MediaType):
		var x ocispec.Index
		if err := json.Unmarshal(data, &x); err != nil {
			return nil, errs.New(errs.InvalidArgument, "index %s: %v", d.Digest, err)
		}
		out = x.Manifests
	}
	if len(out) > maxChildren {
		return nil, errs.New(errs.InvalidArgument, "%s names %d things, at most %d are allowed", d.Digest, len(out), maxChildren)
	}
	for _, c := range out {
		if err := c.Digest.Validate(); err != nil {
			return nil, errs.New(errs.InvalidArgument, "%s names digest %.80q: %v", d.Digest, c.Digest, err)
		}
		if c.Size < 0 {
			return nil, errs.New(errs.InvalidArgument, "%s gives %s a negative size", d.Digest, c.Digest)
		}
	}
	return out, nil
}

// gcLabels are the labels by which content holds its children.
func gcLabels(kids []ocispec.Descriptor) map[string]string {
	out := map[string]string{}
	count := map[string]int{}
	for _, c := range kids {
		key := label.GCRefContent + "."
		switch {
		case isManifest(c.MediaType), isIndex(c.MediaType):
			key += "m."
		case isLayer(c.MediaType):
			key += "l."
		case isConfig(c.MediaType):
			key += "config"
		}
		n := count[key]
		count[key]++
		if strings.HasSuffix(key, ".") || n > 0 {
			key = strings.TrimSuffix(key, ".") + "." + strconv.Itoa(n)
		}
		out[key] = c.Digest.String()
	}
	return out
}

// attestation manifests describe an image and are none (BuildKit's in-toto form).
func attestation(d ocispec.Descriptor) bool {
	return d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// choose picks the manifests of an index that are wanted, best first, and those
// that are wanted only for their metadata. A manifest without a platform may be
// for any: its config will tell.
func (c Choice) choose(kids []ocispec.Descriptor) (want, metadata []ocispec.Descriptor) {
	m := c.matcher()
	for _, k := range kids {
		switch {
		case len(c.Platforms) == 0, k.Platform == nil && !attestation(k), k.Platform != nil && m.Match(platforms.Normalize(*k.Platform)):
			want = append(want, k)
		default:
			metadata = append(metadata, k)
		}
	}
	sort.SliceStable(want, func(a, b int) bool {
		pa, pb := want[a].Platform, want[b].Platform
		switch {
		case pa == nil:
			return false
		case pb == nil:
			return true
		}
		return m.Less(platforms.Normalize(*pa), platforms.Normalize(*pb))
	})
	if c.Limit > 0 && len(want) > c.Limit {
		metadata = append(metadata, want[c.Limit:]...)
		want = want[:c.Limit]
	}
	if !c.AllMetadata {
		metadata = nil
	}
	return want, metadata
}

// noMatch says what there is instead of what was wanted.
func (c Choice) noMatch(name string, kids []ocispec.Descriptor) error {
	var have, want []string
	for _, k := range kids {
		if k.Platform != nil && !attestation(k) {
			have = append(have, platforms.Format(*k.Platform))
		}
	}
	for _, p := range c.Platforms {
		want = append(want, platforms.Format(p))
	}
	slices.Sort(have)
	return errs.New(errs.NotFound, "no match for platform %s in %s: it has %s", strings.Join(want, ", "), name, strings.Join(slices.Compact(have), ", "))
}

// image is one manifest with its config, ready to be unpacked.
type image struct {
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	spec     ocispec.Image
	layers   []ocispec.Descriptor
}

// checkImage parses a config and compares it with its manifest.
func checkImage(manifest ocispec.Descriptor, kids []ocispec.Descriptor, config []byte) (image, error) {
	im := image{manifest: manifest, config: kids[0]}
	if err := json.Unmarshal(config, &im.spec); err != nil {
		return im, errs.New(errs.InvalidArgument, "config %s: %v", im.config.Digest, err)
	}
	for _, l := range kids[1:] {
		if isLayer(l.MediaType) {
			im.layers = append(im.layers, l)
		}
	}
	if n := len(im.spec.RootFS.DiffIDs); n != len(im.layers) {
		return im, errs.New(errs.InvalidArgument, "manifest %s has %d layers and its config has %d diff ids", manifest.Digest, len(im.layers), n)
	}
	for _, d := range im.spec.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return im, errs.New(errs.InvalidArgument, "config %s: diff id %.80q: %v", im.config.Digest, d, err)
		}
	}
	return im, nil
}

func (im image) platform() ocispec.Platform {
	return platforms.Normalize(ocispec.Platform{OS: im.spec.OS, Architecture: im.spec.Architecture, Variant: im.spec.Variant, OSVersion: im.spec.OSVersion})
}

func (im image) String() string {
	return fmt.Sprintf("%s (%s)", im.manifest.Digest, platforms.Format(im.platform()))
}
