package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func jsonIndex(list []ocispec.Descriptor) ([]byte, error) {
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: list}
	index.SchemaVersion = 2
	return json.Marshal(index)
}

// fetchParts fetches and checks config and layers of a manifest.
func fetchParts(ctx context.Context, r *Remote, manifest []byte) (int64, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return 0, err
	}
	config, err := r.FetchSmall(ctx, m.Config)
	if err != nil {
		return 0, err
	}
	total := int64(len(config))
	for _, l := range m.Layers {
		b, err := r.FetchBlob(ctx, l, 0)
		if err != nil {
			return total, err
		}
		n, err := readAll(b, l)
		total += n
		b.Close()
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// counter counts the bytes that a fault let through.
type counter struct{ n atomic.Int64 }

type countingWriter struct {
	http.ResponseWriter
	c *counter
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.c.n.Add(int64(n))
	return n, err
}

func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

type readCloser = io.ReadCloser

func nopCloser(data []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(data)) }
