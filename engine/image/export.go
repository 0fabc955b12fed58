package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/store"
)

// annotationName carries an image's full name in an archive's index.
const annotationName = "io.containerd.image.name"

// ExportRequest writes images into one archive.
type ExportRequest struct {
	Names        []string
	Choice       Choice // Platforms empty: what is here
	SkipDocker   bool   // no manifest.json
	SkipForeign  bool   // no non-distributable layers
	AllPlatforms bool   // what is missing is an error
	Watch        Watcher
}

// Export writes an OCI image layout as a tar stream, with a manifest.json beside
// it, so that `docker load` reads it too:
//
//	oci-layout  index.json  manifest.json  blobs/sha256/<hex> …
//
// Of an index, the platforms that are here are written; none at all is an error.
func (i *Images) Export(ctx context.Context, v store.Scoped, w io.Writer, r ExportRequest) error {
	if r.Watch == nil {
		r.Watch = func(Progress) {}
	}
	x := &exporting{transfer: i.transfer(v, strings.Join(r.Names, ", "), r.Watch), r: r, tw: tar.NewWriter(w), blobs: map[digest.Digest]ocispec.Descriptor{}}
	x.meter.note("Exporting", x.parent)
	for _, name := range r.Names {
		im, err := store.Get(ctx, v, func(tx *store.Tx) (store.Image, error) { return tx.Image(name) })
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		if err := x.add(ctx, im); err != nil {
			return fmt.Errorf("export %s: %w", name, err)
		}
	}
	err := x.metered(ctx, func(ctx context.Context) error { return x.write(ctx) })
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	x.meter.note("Completed export", x.parent)
	return nil
}

type exporting struct {
	*transfer
	r      ExportRequest
	tw     *tar.Writer
	index  ocispec.Index
	docker []dockerImage
	blobs  map[digest.Digest]ocispec.Descriptor
}

// dockerImage is one entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func blobName(d digest.Digest) string {
	return path.Join("blobs", d.Algorithm().String(), d.Encoded())
}

// add collects what one image needs.
func (x *exporting) add(ctx context.Context, im store.Image) error {
	found, err := x.collect(ctx, im.Target, 0)
	if err != nil {
		return err
	}
	if found == 0 {
		return errs.New(errs.NotFound, "none of its platforms is here with all its content: pull it first")
	}
	d := im.Target
	d.Annotations = map[string]string{annotationName: im.Name}
	for k, v := range im.Target.Annotations {
		d.Annotations[k] = v
	}
	ref, err := imageref.Parse(im.Name)
	if err == nil && ref.Tag != "" {
		d.Annotations[ocispec.AnnotationRefName] = ref.Tag
	}
	x.index.Manifests = append(x.index.Manifests, d)
	return x.addDocker(ctx, im, ref)
}

// collect lists the content below d and counts the manifests that are here whole.
func (x *exporting) collect(ctx context.Context, d ocispec.Descriptor, depth int) (int, error) {
	if depth > maxDepth {
		return 0, errs.New(errs.InvalidArgument, "%s: indexes are nested deeper than %d", d.Digest, maxDepth)
	}
	data, err := x.read(ctx, d)
	if err != nil {
		return 0, err
	}
	kids, err := children(d, data)
	if err != nil {
		return 0, err
	}
	if isIndex(d.MediaType) {
		return x.collectIndex(ctx, d, kids, depth)
	}
	for _, k := range kids {
		if x.r.SkipForeign && isForeign(k.MediaType) {
			continue
		}
		there, err := store.Get(ctx, x.v, func(tx *store.Tx) (bool, error) { return tx.HasContent(k.Digest) })
		if err != nil {
			return 0, err
		}
		if !there {
			return 0, errs.New(errs.NotFound, "content %s of manifest %s is not here", k.Digest, d.Digest)
		}
	}
	x.blobs[d.Digest] = d
	for _, k := range kids {
		if !x.r.SkipForeign || !isForeign(k.MediaType) {
			x.blobs[k.Digest] = k
		}
	}
	return 1, nil
}

func (x *exporting) collectIndex(ctx context.Context, d ocispec.Descriptor, kids []ocispec.Descriptor, depth int) (int, error) {
	want, _ := x.r.Choice.choose(kids)
	total := 0
	for _, k := range want {
		n, err := x.collect(ctx, k, depth+1)
		if errs.Is(err, errs.NotFound) && !x.r.AllPlatforms {
			continue
		}
		if err != nil {
			return total, err
		}
		total += n
	}
	if total > 0 {
		x.blobs[d.Digest] = d
	}
	return total, nil
}

// addDocker gives docker the best platform that is here.
func (x *exporting) addDocker(ctx context.Context, im store.Image, ref imageref.Reference) error {
	if x.r.SkipDocker {
		return nil
	}
	c := x.r.Choice
	if len(c.Platforms) == 0 {
		c = HostChoice()
	}
	best, err := x.best(ctx, im.Target, c, 0)
	if errs.Is(err, errs.NotFound) || errs.Is(err, errs.InvalidArgument) {
		return nil // nothing in it that docker could load
	}
	if err != nil {
		return err
	}
	e := dockerImage{Config: blobName(best.config.Digest)}
	if ref.Tag != "" {
		e.RepoTags = []string{ref.Familiar()}
	}
	for _, l := range best.layers {
		e.Layers = append(e.Layers, blobName(l.Digest))
	}
	x.docker = append(x.docker, e)
	return nil
}

func (x *exporting) write(ctx context.Context) error {
	x.index.Versioned = specs.Versioned{SchemaVersion: 2}
	x.index.MediaType = ocispec.MediaTypeImageIndex
	for _, d := range []string{"blobs/", "blobs/sha256/"} {
		if err := x.tw.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	docs := map[string]any{"oci-layout": ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}, "index.json": x.index}
	if len(x.docker) > 0 {
		docs["manifest.json"] = x.docker
	}
	for _, name := range []string{"oci-layout", "index.json", "manifest.json"} {
		if docs[name] == nil {
			continue
		}
		data, err := json.Marshal(docs[name])
		if err != nil {
			return err
		}
		if err := x.file(name, int64(len(data)), bytes.NewReader(data)); err != nil {
			return err
		}
	}
	all := make([]ocispec.Descriptor, 0, len(x.blobs))
	for _, d := range x.blobs {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	for _, d := range all {
		if err := x.blob(ctx, d); err != nil {
			return err
		}
	}
	return x.tw.Close()
}

func (x *exporting) blob(ctx context.Context, d ocispec.Descriptor) error {
	f, err := x.v.OpenContent(ctx, d.Digest)
	if err != nil {
		return err
	}
	defer f.Close() // only read from
	j := x.meter.start("exporting", d, x.parent)
	if err := x.file(blobName(d.Digest), f.Size, io.TeeReader(f, j)); err != nil {
		return err
	}
	x.meter.end(j, "complete")
	return nil
}

func (x *exporting) file(name string, size int64, r io.Reader) error {
	if err := x.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o444, Size: size}); err != nil {
		return err
	}
	_, err := io.Copy(x.tw, r)
	return err
}
