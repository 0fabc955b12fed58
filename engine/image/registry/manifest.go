package registry

import (
	"context"
	"net/http"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
)

// The manifest types of Docker; those of OCI are in ocispec.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSigned1  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

func isManifestType(t string) bool {
	return isIndexType(t) || t == ocispec.MediaTypeImageManifest || t == dockerManifest
}

func isIndexType(t string) bool { return t == ocispec.MediaTypeImageIndex || t == dockerList }

func isSchema1(t string) bool { return t == dockerSchema1 || t == dockerSigned1 }

// FetchManifest fetches a manifest or index by its digest and checks size, digest
// and type. The document is safe to be read by any JSON decoder: it has no
// duplicate keys, and is not an index and a manifest at once. Inline data of the
// descriptor is used if it is what the digest says. At most Limits.Manifest bytes
// are read. Errors are those of Resolve, ResourceExhausted, and DataLoss for
// content that no host has right.
func (r *Remote) FetchManifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	op := "fetch manifest " + d.Digest.String() + " of " + r.ref.Name()
	if err := r.checkDescriptor(d); err != nil {
		return nil, errs.New(kindOf(err), "%s: %w", clean(op, 400), err)
	}
	if data, ok := inline(d); ok {
		return data, checkType(data, d.MediaType)
	}
	var data []byte
	err := r.ask(ctx, op, r.with(canPull), func(ctx context.Context, e *endpoint, quick bool) error {
		q := r.pull(http.MethodGet, e.manifestURL(r.ref.Path, d.Digest.String()), quick)
		q.header = http.Header{"Accept": {acceptFor(d.MediaType)}}
		var (
			resp *http.Response
			err  error
		)
		if data, resp, err = r.small(ctx, e, q, d.Size); err != nil {
			return err
		}
		if err := checkContent(data, d); err != nil {
			return err
		}
		if t := contentType(resp); isManifestType(t) && d.MediaType != "" && t != d.MediaType {
			return errs.New(errs.DataLoss, "the host serves it as %s, it was named as %s", t, d.MediaType)
		}
		return checkType(data, d.MediaType)
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// FetchSmall fetches a whole blob, such as an image config, of at most
// Limits.Manifest bytes, and checks size and digest.
func (r *Remote) FetchSmall(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	op := "fetch blob " + d.Digest.String() + " of " + r.ref.Name()
	if err := r.checkDescriptor(d); err != nil {
		return nil, errs.New(kindOf(err), "%s: %w", clean(op, 400), err)
	}
	if data, ok := inline(d); ok {
		return data, nil
	}
	var data []byte
	err := r.ask(ctx, op, r.with(canPull), func(ctx context.Context, e *endpoint, quick bool) (err error) {
		if data, _, err = r.small(ctx, e, r.pull(http.MethodGet, e.blobURL(r.ref.Path, d.Digest), quick), d.Size); err != nil {
			return err
		}
		return checkContent(data, d)
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

func (r *Remote) checkDescriptor(d ocispec.Descriptor) error {
	switch err := imageref.CheckDigest(d.Digest); {
	case err != nil:
		return err
	case isSchema1(d.MediaType):
		return errs.New(errs.Unimplemented, "Docker's schema 1 is not supported")
	case d.Size < 0:
		return errs.New(errs.InvalidArgument, "the descriptor has size %d", d.Size)
	case d.Size > r.c.limits.Manifest:
		return tooLarge(d.Size, r.c.limits.Manifest)
	}
	return nil
}

// inline gives a descriptor's own data where it is what the digest says; other
// data is ignored, as if it were not there.
func inline(d ocispec.Descriptor) ([]byte, bool) {
	if len(d.Data) == 0 || checkContent(d.Data, d) != nil {
		return nil, false
	}
	return d.Data, true
}

func checkContent(data []byte, d ocispec.Descriptor) error {
	if int64(len(data)) != d.Size {
		return errs.New(errs.DataLoss, "the host serves %d bytes, the descriptor says %d", len(data), d.Size)
	}
	if got := hashOf(d.Digest.Algorithm(), data); got != d.Digest {
		return errs.New(errs.DataLoss, "the host serves content with digest %s", got)
	}
	return nil
}

func acceptFor(t string) string {
	if t == "" {
		return acceptManifests
	}
	return t + ", " + acceptManifests
}

// checkType refuses a document that does not mean the same to every reader
// (CVE-2021-41190). want may be "", if only the document knows.
func checkType(data []byte, want string) error {
	s, err := readShape(data)
	if err != nil {
		return err
	}
	_, err = s.typeFor(want)
	return err
}
