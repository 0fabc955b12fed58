package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/host/archive"
	"github.com/berthd/berth/store"
)

// ImportRequest reads images from an archive.
type ImportRequest struct {
	IndexName string     // also store the archive's whole index under this name
	Rules     []NameRule // how images get their names
	Labels    map[string]string
	Choice    Choice
	Unpack    []Target
	Compress  bool // gzip layers that are not compressed
	Watch     Watcher
}

// The bounds of an archive that nobody vouches for.
const (
	maxArchiveIndex   = 4 << 20   // bytes of index.json or manifest.json
	maxArchiveEntries = 1_000_000 // files
	maxArchiveNames   = 64 << 20  // bytes of names and links that are remembered
)

// Import reads an OCI layout or what `docker save` wrote, plain or compressed, and
// stores the images in it. Blobs that are here already are read past, not stored.
func (i *Images) Import(ctx context.Context, v store.Scoped, r io.Reader, req ImportRequest) ([]store.Image, error) {
	if req.Watch == nil {
		req.Watch = func(Progress) {}
	}
	var out []store.Image
	err := i.leased(ctx, v, "import", func(v store.Scoped) (err error) {
		out, err = i.importLeased(ctx, v, r, req)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return out, nil
}

func (i *Images) importLeased(ctx context.Context, v store.Scoped, r io.Reader, req ImportRequest) ([]store.Image, error) {
	t := i.transfer(v, "import", req.Watch)
	t.meter.note("Importing", t.parent)
	in := &importing{transfer: t, req: req, files: map[string]ocispec.Descriptor{}, links: map[string]string{}, docs: map[string][]byte{}}
	plain, err := archive.Decompress(r, "")
	if err != nil {
		return nil, err
	}
	defer plain.Close() // read to its end, or given up
	if err := in.read(ctx, plain); err != nil {
		return nil, err
	}
	index, err := in.index(ctx)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	root := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := t.write(ctx, root, bytes.NewReader(data), gcLabels(index.Manifests), false); err != nil {
		return nil, err
	}
	images := nameImages(root, index, req)
	if len(images) == 0 {
		return nil, errs.New(errs.NotFound, "the archive gives its images no names: say --base-name, --digests or --index-name")
	}
	err = t.metered(ctx, func(ctx context.Context) error { return in.bringAll(ctx, index) })
	if err != nil {
		return nil, err
	}
	err = v.PromiseBytes(ctx, func(tx *store.Tx) error {
		for n := range images {
			if images[n], err = tx.PutImage(images[n]); err != nil {
				return err
			}
		}
		return nil
	})
	for _, im := range images {
		t.meter.tell(Progress{Event: "saved", Name: im.Name, Desc: &im.Target})
	}
	t.meter.note("Completed import", t.parent)
	return images, err
}

// bringAll labels what was stored, checks that the wanted platforms are whole, and
// unpacks them. Without a platform asked for, what the archive has is enough.
func (in *importing) bringAll(ctx context.Context, index ocispec.Index) error {
	for _, m := range index.Manifests {
		_, err := in.bring(ctx, m, in.req.Choice, in.req.Unpack)
		if err != nil && !(errs.Is(err, errs.NotFound) && isIndex(m.MediaType) && len(in.req.Choice.Platforms) == 0) {
			return err
		}
	}
	return nil
}

// importing is one archive on its way in.
type importing struct {
	*transfer
	req   ImportRequest
	files map[string]ocispec.Descriptor // by cleaned name
	links map[string]string
	docs  map[string][]byte // index.json, manifest.json, oci-layout
	names int               // bytes
}

func (in *importing) read(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r) // the padding, so that the sender can end
			return err
		}
		if err != nil {
			return errs.New(errs.InvalidArgument, "the archive is no tar, or broken: %v", err)
		}
		if n >= maxArchiveEntries {
			return errs.New(errs.ResourceExhausted, "the archive has more than %d entries", maxArchiveEntries)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if in.names += len(name) + len(h.Linkname); in.names > maxArchiveNames {
			return errs.New(errs.ResourceExhausted, "the names in the archive have more than %d bytes", maxArchiveNames)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if err := in.entry(ctx, name, h.Size, tr); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		case tar.TypeSymlink: // docker save: layers that are the same
			in.links[name] = strings.TrimPrefix(path.Join("/", path.Dir(name), h.Linkname), "/")
		case tar.TypeLink:
			in.links[name] = strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		}
	}
}

func (in *importing) entry(ctx context.Context, name string, size int64, r io.Reader) error {
	switch name {
	case "oci-layout", "index.json", "manifest.json", "repositories":
		if size > maxArchiveIndex {
			return errs.New(errs.ResourceExhausted, "it has %d bytes, at most %d are read", size, maxArchiveIndex)
		}
		data, err := io.ReadAll(r)
		in.docs[name] = data
		return err
	}
	d := ocispec.Descriptor{Size: size}
	if dir, hex := path.Split(name); strings.HasPrefix(dir, "blobs/") {
		alg := strings.Trim(strings.TrimPrefix(dir, "blobs/"), "/")
		if d.Digest = digest.NewDigestFromEncoded(digest.Algorithm(alg), hex); d.Digest.Validate() != nil {
			d.Digest = ""
		}
	}
	d, err := in.store(ctx, d, r)
	in.files[name] = d
	return err
}

// store stores one file of the archive; its digest may not be known beforehand.
func (in *importing) store(ctx context.Context, d ocispec.Descriptor, r io.Reader) (ocispec.Descriptor, error) {
	if d.Digest != "" {
		if there, err := in.there(ctx, d); err != nil || there {
			return d, err
		}
	}
	// A ref of its own: two imports may bring the same blob at once.
	w, err := in.v.Writer(ctx, store.WriterOptions{Ref: "import-" + id.New(8), Total: d.Size})
	if err != nil {
		return d, err
	}
	defer func() { _ = w.Close() }() // what counts was committed
	j := in.meter.start("importing", d, in.parent)
	if _, err := io.Copy(io.MultiWriter(w, j), r); err != nil {
		return d, errors.Join(err, w.Close(), in.v.Abort(context.WithoutCancel(ctx), w.Status().Ref))
	}
	o := store.CommitOptions{Size: d.Size, Expected: d.Digest, Later: true}
	if d.Digest == "" {
		d.Digest = w.Digest()
	}
	err = errs.Ignore(w.Commit(ctx, o), errs.AlreadyExists)
	if errs.Is(err, errs.FailedPrecondition) {
		err = errors.Join(errs.New(errs.InvalidArgument, "its content is not what its name says: %v", err), w.Close(), in.v.Abort(context.WithoutCancel(ctx), w.Status().Ref))
	}
	in.meter.end(j, "complete")
	return d, err
}

// index is the archive's index, or one made of a manifest.json.
func (in *importing) index(ctx context.Context) (ocispec.Index, error) {
	var x ocispec.Index
	switch {
	case in.docs["oci-layout"] != nil:
		var l ocispec.ImageLayout
		if err := json.Unmarshal(in.docs["oci-layout"], &l); err != nil || l.Version != ocispec.ImageLayoutVersion {
			return x, errs.New(errs.InvalidArgument, "oci-layout has version %q, known is %s (%v)", l.Version, ocispec.ImageLayoutVersion, err)
		}
		if err := json.Unmarshal(in.docs["index.json"], &x); err != nil {
			return x, errs.New(errs.InvalidArgument, "index.json: %v", err)
		}
		for _, m := range x.Manifests {
			if err := m.Digest.Validate(); err != nil {
				return x, errs.New(errs.InvalidArgument, "index.json names digest %.80q: %v", m.Digest, err)
			}
		}
	case in.docs["manifest.json"] != nil:
		return in.dockerIndex(ctx)
	default:
		return x, errs.New(errs.InvalidArgument, "the archive has neither oci-layout with index.json nor manifest.json: it is no image archive")
	}
	x.Versioned, x.MediaType = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageIndex
	return x, nil
}
