package image

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/archive"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/store"
	"github.com/berthd/berth/store/blob"
)

// ApplyDiff unpacks one layer into what mounts describe and returns the plain
// tar's descriptor. Where the mounts are directories that may be written directly
// (a bind, an overlay's upper), nothing is mounted.
func (i *Images) ApplyDiff(ctx context.Context, v store.Scoped, d ocispec.Descriptor, mounts []spec.Mount, sync bool) (ocispec.Descriptor, error) {
	f, err := v.OpenContent(ctx, d.Digest)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close() // only read from
	var out ocispec.Descriptor
	apply := func(dir string, o archive.ApplyOptions, parents []string) (err error) {
		if out, err = applyTo(ctx, f, d.MediaType, dir, o, parents); err == nil && sync {
			err = blob.SyncFS(dir)
		}
		return err
	}
	if dir, style, parents, ok := direct(mounts); ok {
		return out, apply(dir, archive.ApplyOptions{Whiteout: style}, parents)
	}
	err = mount.Temp(ctx, mounts, func(root string) error {
		return apply(root, archive.ApplyOptions{Whiteout: spec.WhiteoutRemove}, nil)
	})
	return out, err
}

func applyTo(ctx context.Context, r io.Reader, mediaType, dir string, o archive.ApplyOptions, parents []string) (ocispec.Descriptor, error) {
	plain, err := archive.Decompress(r, mediaType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer plain.Close() // read to its end, or given up
	hash := digest.Canonical.Hash()
	count := &countingReader{r: io.TeeReader(plain, hash)}
	res, err := archive.Apply(ctx, dir, count, o)
	if err == nil && o.Whiteout != spec.WhiteoutRemove {
		err = archive.Finish(ctx, dir, res.Unresolved, parents)
	}
	return ocispec.Descriptor{MediaType: ociLayer, Digest: digest.NewDigest(digest.Canonical, hash), Size: count.n}, err
}

// direct finds the directory behind mounts that a layer may be written to: with
// the parents' directories, nearest first, where it holds only the differences.
func direct(mounts []spec.Mount) (dir string, style spec.Whiteout, parents []string, ok bool) {
	if len(mounts) != 1 || mounts[0].Target != "" {
		return "", 0, nil, false
	}
	m := mounts[0]
	switch m.Type {
	case "bind":
		for _, o := range m.Options {
			if o == "ro" || strings.Contains(o, "idmap") || strings.HasPrefix(o, "uidmap=") {
				return "", 0, nil, false
			}
		}
		return m.Source, spec.WhiteoutRemove, nil, true
	case "overlay":
		style = spec.WhiteoutOverlay
		for _, o := range m.Options {
			switch key, val, _ := strings.Cut(o, "="); key {
			case "upperdir":
				dir = val
			case "lowerdir":
				parents = strings.Split(val, ":")
			case "userxattr":
				style = spec.WhiteoutOverlayUser
			case "uidmap", "gidmap", "redirect_dir", "metacopy":
				return "", 0, nil, false
			}
		}
		return dir, style, parents, dir != "" && !strings.Contains(strings.Join(m.Options, ","), `\:`)
	}
	return "", 0, nil, false
}

// DiffRequest asks for the layer that leads from one tree to another.
type DiffRequest struct {
	Left, Right []spec.Mount
	MediaType   string // "": gzip
	Ref         string // of the ingest; "": a random one
	Labels      map[string]string
	Epoch       time.Time // latest time that the layer may hold; zero: any
}

// Diff writes the layer that leads from left to right into the store.
func (i *Images) Diff(ctx context.Context, v store.Scoped, r DiffRequest) (ocispec.Descriptor, error) {
	if r.MediaType == "" {
		r.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	if !isLayer(r.MediaType) {
		return ocispec.Descriptor{}, errs.New(errs.Unimplemented, "diff as %q: it is no layer type", r.MediaType)
	}
	if r.Ref == "" {
		r.Ref = "diff-" + id.New(8)
	}
	w, err := v.Writer(ctx, store.WriterOptions{Ref: r.Ref})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { _ = w.Close() }() // what counts was committed
	if err := w.Reset(ctx); err != nil {
		return ocispec.Descriptor{}, err
	}
	hash := digest.Canonical.Hash()
	err = mount.Temp(ctx, mount.ReadOnly(r.Left), func(left string) error {
		return mount.Temp(ctx, mount.ReadOnly(r.Right), func(right string) error {
			return writeDiff(ctx, w, hash, left, right, r)
		})
	})
	if err != nil {
		return ocispec.Descriptor{}, errors.Join(err, w.Close(), errs.Ignore(v.Abort(context.WithoutCancel(ctx), r.Ref), errs.NotFound))
	}
	d := ocispec.Descriptor{MediaType: r.MediaType, Digest: w.Digest(), Size: w.Offset()}
	labels := label.Update(r.Labels, map[string]string{label.Uncompressed: digest.NewDigest(digest.Canonical, hash).String()})
	err = w.Commit(ctx, store.CommitOptions{Labels: labels})
	if errs.Is(err, errs.AlreadyExists) {
		err = i.transfer(v, "", func(Progress) {}).addLabels(ctx, d, labels)
	}
	return d, err
}

func writeDiff(ctx context.Context, w io.Writer, hash io.Writer, left, right string, r DiffRequest) (err error) {
	zw, err := archive.Compress(w, r.MediaType)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, zw.Close()) }()
	return archive.Diff(ctx, io.MultiWriter(zw, hash), left, right, archive.DiffOptions{Epoch: r.Epoch})
}
