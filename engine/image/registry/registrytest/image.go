package registrytest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one entry of a layer. The zero Type is a regular file, or a directory
// if the name ends in a slash.
type File struct {
	Name   string
	Body   string
	Mode   int64 // default 0644, directories 0755
	UID    int
	GID    int
	Type   byte   // tar.Type…
	Link   string // target of TypeLink and TypeSymlink
	Xattrs map[string]string
}

// Compression of a layer.
type Compression string

// The compressions.
const (
	Gzip  Compression = "gzip" // also the zero value
	Zstd  Compression = "zstd"
	Plain Compression = "plain"
)

// Layer is one layer to be built. Tar, if not nil, is used in place of Files.
type Layer struct {
	Files       []File
	Tar         []byte
	Compression Compression
}

// Image is an image to be built.
type Image struct {
	Layers      []Layer
	Config      ocispec.ImageConfig
	Platform    ocispec.Platform // default linux/amd64
	Docker      bool             // Docker's media types in place of OCI's; no zstd there
	Annotations map[string]string
	Subject     *ocispec.Descriptor
}

// Built is an image or index as bytes.
type Built struct {
	Descriptor ocispec.Descriptor // of the manifest or index
	Data       []byte             // the manifest or index
	Config     ocispec.Descriptor
	Layers     []ocispec.Descriptor
	DiffIDs    []digest.Digest
	Blobs      [][]byte // config and layers, of all manifests
	Manifests  []Manifest
}

// Manifest is one manifest that an index names.
type Manifest struct {
	MediaType string
	Data      []byte
}

// Tar makes a tar stream of files; times are zero.
func Tar(files []File) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Typeflag: f.Type, Linkname: f.Link, ModTime: time.Unix(0, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(f.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		for k, v := range f.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(f.Body))
		}
		must(w.WriteHeader(h))
		if h.Size > 0 {
			_, err := w.Write([]byte(f.Body))
			must(err)
		}
	}
	must(w.Close())
	return buf.Bytes()
}

// must panics: bytes in memory do not fail, so the test's input is wrong.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("registrytest: %v", err))
	}
}

// Compress packs data.
func Compress(c Compression, data []byte) []byte {
	var buf bytes.Buffer
	switch c {
	case Plain:
		return data
	case Zstd:
		w, err := zstd.NewWriter(&buf)
		must(err)
		_, err = w.Write(data)
		must(err)
		must(w.Close())
	default:
		w := gzip.NewWriter(&buf)
		_, err := w.Write(data)
		must(err)
		must(w.Close())
	}
	return buf.Bytes()
}

// layerType is the media type of a layer.
func layerType(c Compression, docker bool) string {
	switch {
	case docker && c == Plain:
		return "application/vnd.docker.image.rootfs.diff.tar"
	case docker:
		return "application/vnd.docker.image.rootfs.diff.tar.gzip"
	case c == Plain:
		return ocispec.MediaTypeImageLayer
	case c == Zstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayerGzip
}

func describe(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	must(err)
	return data
}

// Build makes an image.
func Build(img Image) Built {
	var b Built
	for _, l := range img.Layers {
		raw := l.Tar
		if raw == nil {
			raw = Tar(l.Files)
		}
		blob := Compress(l.Compression, raw)
		b.Blobs = append(b.Blobs, blob)
		b.DiffIDs = append(b.DiffIDs, digest.FromBytes(raw))
		b.Layers = append(b.Layers, describe(layerType(l.Compression, img.Docker), blob))
	}
	if img.Platform.OS == "" {
		img.Platform = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	}
	configType, manifestType := ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageManifest
	if img.Docker {
		configType = "application/vnd.docker.container.image.v1+json"
		manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	}
	config := encode(ocispec.Image{
		Platform: img.Platform, Config: img.Config, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: b.DiffIDs},
	})
	b.Config = describe(configType, config)
	b.Blobs = append(b.Blobs, config)
	layers := b.Layers
	if layers == nil {
		layers = []ocispec.Descriptor{}
	}
	b.Data = encode(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType, Config: b.Config, Layers: layers,
		Annotations: img.Annotations, Subject: img.Subject,
	})
	b.Descriptor = describe(manifestType, b.Data)
	b.Descriptor.Platform = &img.Platform
	return b
}

// Index joins images into one index.
func Index(images ...Built) Built {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var b Built
	for _, i := range images {
		index.Manifests = append(index.Manifests, i.Descriptor)
		b.Blobs = append(b.Blobs, i.Blobs...)
		b.Manifests = append(append(b.Manifests, i.Manifests...), Manifest{i.Descriptor.MediaType, i.Data})
	}
	b.Data = encode(index)
	b.Descriptor = describe(index.MediaType, b.Data)
	return b
}
