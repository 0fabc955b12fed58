package registry

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
)

// Resolve asks what ref names now. The descriptor's digest is what all further
// requests must use: a tag may move. Errors are of kind NotFound, Unauthenticated,
// PermissionDenied, Unavailable, DataLoss (a host contradicts itself),
// Unimplemented (schema 1) or InvalidArgument.
func (c *Client) Resolve(ctx context.Context, ref imageref.Reference, opts Options) (ocispec.Descriptor, *Remote, error) {
	r, err := c.Open(ref, opts)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	d, err := r.Resolve(ctx)
	return d, r, err
}

// Resolve asks for the descriptor of the remote's own tag or digest.
func (r *Remote) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	object := r.ref.Object()
	if object == "" {
		return ocispec.Descriptor{}, errs.New(errs.InvalidArgument, "resolve %s: neither tag nor digest", r.ref)
	}
	if r.ref.Digest != "" {
		if err := imageref.CheckDigest(r.ref.Digest); err != nil {
			return ocispec.Descriptor{}, errs.New(errs.InvalidArgument, "resolve %s: %w", r.ref, err)
		}
	}
	return r.resolve(ctx, object, r.with(canResolve))
}

func (r *Remote) resolve(ctx context.Context, object string, hosts []*endpoint) (ocispec.Descriptor, error) {
	var found ocispec.Descriptor
	err := r.ask(ctx, "resolve "+r.ref.String(), hosts, func(ctx context.Context, e *endpoint, quick bool) error {
		d, err := r.resolveAt(ctx, e, object, quick)
		found = d
		return err
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return found, nil
}

// resolveAt asks one host: HEAD, and GET where HEAD does not say enough.
func (r *Remote) resolveAt(ctx context.Context, e *endpoint, object string, quick bool) (ocispec.Descriptor, error) {
	q := r.pull(http.MethodHead, e.manifestURL(r.ref.Path, object), quick)
	q.header = http.Header{"Accept": {acceptManifests}}
	resp, err := r.exchange(ctx, e, q)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusMethodNotAllowed:
		return r.resolveByGet(ctx, e, object)
	case resp.StatusCode == http.StatusNotFound && r.ref.Digest != "":
		return r.resolveBlob(ctx, e, r.ref.Digest)
	case resp.StatusCode != http.StatusOK:
		return ocispec.Descriptor{}, statusError(resp)
	}
	d := ocispec.Descriptor{
		MediaType: contentType(resp),
		Digest:    digest.Digest(resp.Header.Get("Docker-Content-Digest")),
		Size:      resp.ContentLength,
	}
	if d.Digest == "" || d.Size <= 0 || !isManifestType(d.MediaType) && !isSchema1(d.MediaType) {
		return r.resolveByGet(ctx, e, object)
	}
	return d, r.checkResolved(d)
}

// checkResolved judges what a host says a name means.
func (r *Remote) checkResolved(d ocispec.Descriptor) error {
	switch {
	case isSchema1(d.MediaType):
		return errs.New(errs.Unimplemented, "the image is in Docker's schema 1, which is not supported: push it again with a newer tool")
	case imageref.CheckDigest(d.Digest) != nil:
		return errs.New(errs.DataLoss, "the host says the digest is %.80q", string(d.Digest))
	case r.ref.Digest != "" && r.ref.Digest != d.Digest:
		return errs.New(errs.DataLoss, "the host answers with %s", d.Digest)
	case d.Size > r.c.limits.Manifest:
		return tooLarge(d.Size, r.c.limits.Manifest)
	}
	return nil
}

func tooLarge(n, limit int64) error {
	return errs.New(errs.ResourceExhausted, "manifest of %d bytes, at most %d are read", n, limit)
}

// resolveByGet fetches and hashes what HEAD did not describe.
func (r *Remote) resolveByGet(ctx context.Context, e *endpoint, object string) (ocispec.Descriptor, error) {
	q := r.pull(http.MethodGet, e.manifestURL(r.ref.Path, object), false)
	q.header = http.Header{"Accept": {acceptManifests}}
	data, resp, err := r.small(ctx, e, q, r.c.limits.Manifest)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	want := r.ref.Digest
	algorithm := digest.SHA256
	if want != "" {
		algorithm = want.Algorithm()
	}
	d := ocispec.Descriptor{MediaType: contentType(resp), Digest: hashOf(algorithm, data), Size: int64(len(data))}
	if said := resp.Header.Get("Docker-Content-Digest"); said != "" && want == "" && said != d.Digest.String() && strings.HasPrefix(said, "sha256:") {
		return ocispec.Descriptor{}, errs.New(errs.DataLoss, "the host says the digest is %.80q, its answer has %s", said, d.Digest)
	}
	if err := r.checkResolved(d); err != nil {
		return ocispec.Descriptor{}, err
	}
	shape, err := readShape(data)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if d.MediaType, err = shape.typeFor(d.MediaType); err != nil {
		return ocispec.Descriptor{}, err
	}
	return d, nil
}

// resolveBlob finds a digest that is no manifest's.
func (r *Remote) resolveBlob(ctx context.Context, e *endpoint, d digest.Digest) (ocispec.Descriptor, error) {
	resp, err := r.exchange(ctx, e, r.pull(http.MethodHead, e.blobURL(r.ref.Path, d), false))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return ocispec.Descriptor{}, statusError(resp)
	}
	if resp.ContentLength < 0 {
		return ocispec.Descriptor{}, errs.New(errs.DataLoss, "the host does not say how large blob %s is", d)
	}
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: resp.ContentLength}, nil
}

// pull is a request that reads from the remote's repository.
func (r *Remote) pull(method string, u *url.URL, quick bool) request {
	return request{method: method, url: u, quick: quick, scopes: []string{repositoryScope(r.ref.Path, "pull")}}
}

// smallTime bounds a small answer as a whole.
const smallTime = 2 * time.Minute

// small makes a request whose answer has status 200 and at most limit bytes, and
// reads all of it.
func (r *Remote) small(ctx context.Context, e *endpoint, q request, limit int64) ([]byte, *http.Response, error) {
	ctx, done := context.WithTimeoutCause(ctx, smallTime, errSlow)
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errClosed)
	resp, err := r.exchange(ctx, e, q)
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, statusError(resp)
	}
	defer resp.Body.Close()
	over := errs.New(errs.ResourceExhausted, "the host serves more than the %d bytes that are read", limit)
	if limit < r.c.limits.Manifest {
		over = errs.New(errs.DataLoss, "the host serves more than %d bytes, the descriptor's size", limit)
	}
	if resp.ContentLength > limit {
		return nil, nil, over
	}
	w := newWatch(r.c.limits, cancel)
	defer w.stop()
	data, err := io.ReadAll(io.LimitReader(w.reader(resp.Body), limit+1))
	switch {
	case context.Cause(ctx) != nil:
		return nil, nil, &netError{err: context.Cause(ctx)}
	case err != nil:
		return nil, nil, &netError{err: err}
	case int64(len(data)) > limit:
		return nil, nil, over
	}
	return data, resp, nil
}

// contentType is the answer's media type without parameters, "" if it makes no sense.
func contentType(resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// hashOf hashes with one of the algorithms that imageref.CheckDigest accepts.
func hashOf(a digest.Algorithm, data []byte) digest.Digest {
	h := newHash(a)
	h.Write(data)
	return digest.Digest(fmt.Sprintf("%s:%x", a, h.Sum(nil)))
}

func newHash(a digest.Algorithm) hash.Hash {
	switch a {
	case digest.SHA384:
		return sha512.New384()
	case digest.SHA512:
		return sha512.New()
	}
	return sha256.New()
}
