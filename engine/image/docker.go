package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/host/archive"
)

// dockerIndex makes an index of what docker save wrote: for each entry of
// manifest.json a manifest of its own.
func (in *importing) dockerIndex(ctx context.Context) (ocispec.Index, error) {
	x := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var entries []dockerImage
	if err := json.Unmarshal(in.docs["manifest.json"], &entries); err != nil {
		return x, errs.New(errs.InvalidArgument, "manifest.json: %v", err)
	}
	for _, e := range entries {
		d, err := in.dockerManifest(ctx, e)
		if err != nil {
			return x, fmt.Errorf("manifest.json: %w", err)
		}
		if len(e.RepoTags) == 0 {
			x.Manifests = append(x.Manifests, d)
		}
		for _, tag := range e.RepoTags {
			ref, err := imageref.Normalize(tag)
			if err != nil {
				return x, fmt.Errorf("manifest.json: %w", err)
			}
			d.Annotations = map[string]string{annotationName: ref.String(), ocispec.AnnotationRefName: ref.Tag}
			x.Manifests = append(x.Manifests, d)
		}
	}
	return x, nil
}

func (in *importing) dockerManifest(ctx context.Context, e dockerImage) (ocispec.Descriptor, error) {
	config, err := in.file(e.Config)
	if err != nil {
		return config, err
	}
	config.MediaType = dockerConfig
	data, err := in.transfer.read(ctx, config)
	if err != nil {
		return config, err
	}
	var spec ocispec.Image
	if err := json.Unmarshal(data, &spec); err != nil {
		return config, errs.New(errs.InvalidArgument, "config %s: %v", e.Config, err)
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: dockerManifest, Config: config}
	for _, name := range e.Layers {
		l, err := in.file(name)
		if err == nil {
			l, err = in.layerType(ctx, l)
		}
		if err != nil {
			return config, err
		}
		m.Layers = append(m.Layers, l)
	}
	if data, err = json.Marshal(m); err != nil {
		return config, err
	}
	d := ocispec.Descriptor{MediaType: dockerManifest, Digest: digest.FromBytes(data), Size: int64(len(data))}
	p := platforms.Normalize(spec.Platform)
	if p.OS != "" {
		d.Platform = &p
	}
	return d, in.write(ctx, d, bytes.NewReader(data), gcLabels(append([]ocispec.Descriptor{config}, m.Layers...)), false)
}

// file finds what the archive has under a name, through at most a few links.
func (in *importing) file(name string) (ocispec.Descriptor, error) {
	at := strings.TrimPrefix(path.Clean("/"+name), "/")
	for range 8 {
		if d, ok := in.files[at]; ok {
			return d, nil
		}
		next, ok := in.links[at]
		if !ok {
			break
		}
		at = next
	}
	return ocispec.Descriptor{}, errs.New(errs.InvalidArgument, "%q is not in the archive", name)
}

// layerType looks at a layer's first bytes for its compression; a plain one is
// compressed if that is wanted.
func (in *importing) layerType(ctx context.Context, d ocispec.Descriptor) (ocispec.Descriptor, error) {
	f, err := in.v.OpenContent(ctx, d.Digest)
	if err != nil {
		return d, err
	}
	defer f.Close() // only read from
	head := make([]byte, 4)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return d, err
	}
	switch head = head[:n]; {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		d.MediaType = dockerLayer + ".gzip"
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d.MediaType = dockerLayer + ".zstd"
	case in.req.Compress:
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return d, err
		}
		return in.compress(ctx, f)
	default:
		d.MediaType = dockerLayer
	}
	return d, nil
}

// compress stores a gzip form of a layer.
func (in *importing) compress(ctx context.Context, r io.Reader) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: dockerLayer + ".gzip"}
	pr, pw := io.Pipe()
	zw, err := archive.Compress(pw, d.MediaType)
	if err != nil {
		return d, err
	}
	// owner: the pipe: store below reads it to its end, or closes it.
	go func() {
		_, err := io.Copy(zw, bufio.NewReaderSize(r, 1<<20))
		if cerr := zw.Close(); err == nil {
			err = cerr
		}
		pw.CloseWithError(err)
	}()
	counted := &countingReader{r: pr}
	stored, err := in.store(ctx, d, counted)
	stored.Size = counted.n
	pr.CloseWithError(io.ErrClosedPipe)
	return stored, err
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
