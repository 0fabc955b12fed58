package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
)

// Pushed says how a blob came to be in the registry.
type Pushed string

// The ways.
const (
	Existed  Pushed = "exists"
	Mounted  Pushed = "mounted" // from another repository there
	Uploaded Pushed = "uploaded"
)

// Source is content to be sent.
type Source interface {
	// Open gives the content from offset on. It is called once per try.
	Open(offset int64) (io.ReadCloser, error)
}

// SourceFunc is a function as a Source.
type SourceFunc func(offset int64) (io.ReadCloser, error)

// Open implements Source.
func (f SourceFunc) Open(offset int64) (io.ReadCloser, error) { return f(offset) }

// pushHost is the one host that is written to: an image in parts on several
// hosts would be an image on none.
func (r *Remote) pushHost() []*endpoint {
	hosts := r.with(canPush)
	return hosts[:min(1, len(hosts))]
}

func (r *Remote) push(method string, u *url.URL) request {
	return request{method: method, url: u, scopes: []string{repositoryScope(r.ref.Path, "pull,push")}}
}

// checkPush refuses what must not become part of a URL.
func checkPush(op string, d ocispec.Descriptor) error {
	if err := imageref.CheckDigest(d.Digest); err != nil {
		return errs.New(errs.InvalidArgument, "%s: %w", clean(op, 300), err)
	}
	if d.Size < 0 {
		return errs.New(errs.InvalidArgument, "%s: the descriptor has size %d", op, d.Size)
	}
	return nil
}

// BlobExists says whether the repository has the blob already.
func (r *Remote) BlobExists(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	op := "look for blob " + d.Digest.String() + " in " + r.ref.Name()
	if err := checkPush(op, d); err != nil {
		return false, err
	}
	return r.exists(ctx, op, d, func(e *endpoint) *url.URL { return e.blobURL(r.ref.Path, d.Digest) })
}

// ManifestExists says whether the repository has the manifest: under tag, if that
// is not empty, else at all.
func (r *Remote) ManifestExists(ctx context.Context, d ocispec.Descriptor, tag string) (bool, error) {
	op := "look for manifest " + d.Digest.String() + " in " + r.ref.Name()
	object, err := objectName(op, d, tag)
	if err != nil {
		return false, err
	}
	return r.exists(ctx, op, d, func(e *endpoint) *url.URL { return e.manifestURL(r.ref.Path, object) })
}

func objectName(op string, d ocispec.Descriptor, tag string) (string, error) {
	if err := checkPush(op, d); err != nil {
		return "", err
	}
	if tag == "" {
		return d.Digest.String(), nil
	}
	if err := imageref.CheckTag(tag); err != nil {
		return "", errs.New(errs.InvalidArgument, "%s: %w", op, err)
	}
	return tag, nil
}

func (r *Remote) exists(ctx context.Context, op string, d ocispec.Descriptor, at func(*endpoint) *url.URL) (bool, error) {
	there := false
	err := r.ask(ctx, op, r.pushHost(), func(ctx context.Context, e *endpoint, _ bool) error {
		q := r.push(http.MethodHead, at(e))
		q.header = http.Header{"Accept": {acceptFor(d.MediaType)}}
		resp, err := r.exchange(ctx, e, q)
		if err != nil {
			return err
		}
		resp.Body.Close()
		switch resp.StatusCode {
		case http.StatusOK:
			said := resp.Header.Get("Docker-Content-Digest")
			there = (resp.ContentLength < 0 || resp.ContentLength == d.Size) && (said == "" || said == d.Digest.String())
			return nil
		case http.StatusNotFound:
			return nil
		}
		return statusError(resp)
	})
	return there, err
}

// PushBlob brings a blob into the repository: not at all if it is there, by a
// mount from one of the repositories in from (of the same registry; the first
// only is asked for) if the registry does that, else by upload. An upload that
// breaks off goes on where the registry says it got to. Content that is not what
// d says is refused by the registry: InvalidArgument.
func (r *Remote) PushBlob(ctx context.Context, d ocispec.Descriptor, src Source, from ...string) (Pushed, error) {
	there, err := r.BlobExists(ctx, d)
	if err != nil {
		return "", err
	}
	if there {
		return Existed, nil
	}
	op := "push blob " + d.Digest.String() + " to " + r.ref.Name()
	how := Uploaded
	var up *upload
	err = r.ask(ctx, op, r.pushHost(), func(ctx context.Context, e *endpoint, _ bool) error {
		at := int64(0)
		if up != nil { // a try before this one broke off
			if at, err = up.reached(ctx, d.Size); err != nil || at == 0 {
				up = nil
			}
		}
		if up == nil {
			started, mounted, err := r.startUpload(ctx, e, d, from)
			if err != nil {
				return err
			}
			if mounted {
				how = Mounted
				return nil
			}
			up = started
		}
		return up.send(ctx, d, src, at)
	})
	if err != nil {
		return "", err
	}
	return how, nil
}

// startUpload opens an upload session, or mounts the blob from another repository.
func (r *Remote) startUpload(ctx context.Context, e *endpoint, d ocispec.Descriptor, from []string) (*upload, bool, error) {
	query := url.Values{}
	scopes := []string{repositoryScope(r.ref.Path, "pull,push")}
	for _, repo := range from {
		if _, err := imageref.Parse(r.ref.Host + "/" + repo); err == nil && repo != r.ref.Path {
			query.Set("mount", d.Digest.String())
			query.Set("from", repo)
			scopes = append(scopes, repositoryScope(repo, "pull"))
			break
		}
	}
	u := e.url(r.ref.Path, query, "blobs", "uploads", "")
	for {
		q := r.push(http.MethodPost, u)
		q.scopes = scopes
		q.body, q.length = func() (io.ReadCloser, error) { return http.NoBody, nil }, 0
		resp, err := r.exchange(ctx, e, q)
		var status *StatusError
		if mounting := len(scopes) > 1; mounting && (err != nil && errors.As(err, &status) || err == nil && resp.StatusCode >= 400 && resp.StatusCode < 500) {
			if err == nil {
				resp.Body.Close()
			}
			// Not allowed to read there: an ordinary upload asks for less.
			scopes, u = scopes[:1], e.url(r.ref.Path, nil, "blobs", "uploads", "")
			continue
		}
		if err != nil {
			return nil, false, err
		}
		switch resp.StatusCode {
		case http.StatusCreated:
			resp.Body.Close()
			return nil, true, nil
		case http.StatusAccepted:
			resp.Body.Close()
			up := &upload{r: r, e: e, scopes: scopes[:1]}
			return up, false, up.moved(resp.Request.URL, resp)
		}
		return nil, false, statusError(resp)
	}
}

// upload is one session.
//
//	POST ─► PUT all, with the digest ─► 201
//	            │ broken off
//	            ▼
//	        GET: how far? ─► PATCH the rest ─► PUT nothing, with the digest ─► 201
//	            └ nowhere, or no answer: a new session starts from the beginning
type upload struct {
	r       *Remote
	e       *endpoint
	scopes  []string
	url     *url.URL
	foreign bool // the session is on another host: no credential goes there
}

// moved takes the session's next address.
func (u *upload) moved(asked *url.URL, resp *http.Response) error {
	next, err := location(asked, resp)
	if err != nil {
		return err
	}
	u.foreign = u.foreign || urlOrigin(next) != urlOrigin(asked)
	u.url = next
	return nil
}

func (u *upload) request(method string, at *url.URL) request {
	return request{method: method, url: at, scopes: u.scopes, foreign: u.foreign}
}

// complete is the session's address with the digest that ends it.
func (u *upload) complete(d digest.Digest) *url.URL {
	c := *u.url
	// The session's own query is opaque: it is kept byte for byte.
	if c.RawQuery != "" {
		c.RawQuery += "&"
	}
	c.RawQuery += "digest=" + url.QueryEscape(d.String())
	return &c
}

// send sends what comes after at and ends the session.
func (u *upload) send(ctx context.Context, d ocispec.Descriptor, src Source, at int64) error {
	if at > 0 && at < d.Size {
		if err := u.patch(ctx, d, src, at); err != nil {
			return err
		}
		at = d.Size
	}
	q := u.request(http.MethodPut, u.complete(d.Digest))
	q.header = http.Header{"Content-Type": {"application/octet-stream"}}
	q.length = d.Size - at
	q.body = func() (io.ReadCloser, error) { return src.Open(at) }
	resp, err := u.r.exchange(ctx, u.e, q)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusOK {
		return statusError(resp)
	}
	resp.Body.Close()
	return checkSaid(resp, d.Digest)
}

// checkSaid compares the digest that the registry says it stored.
func checkSaid(resp *http.Response, d digest.Digest) error {
	if said := resp.Header.Get("Docker-Content-Digest"); said != "" && said != d.String() {
		return errs.New(errs.DataLoss, "the registry says it stored %.80q", said)
	}
	return nil
}

// patch sends what comes after at.
func (u *upload) patch(ctx context.Context, d ocispec.Descriptor, src Source, at int64) error {
	q := u.request(http.MethodPatch, u.url)
	q.header = http.Header{"Content-Type": {"application/octet-stream"}, "Content-Range": {fmt.Sprintf("%d-%d", at, d.Size-1)}}
	q.length = d.Size - at
	q.body = func() (io.ReadCloser, error) { return src.Open(at) }
	resp, err := u.r.exchange(ctx, u.e, q)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusNoContent {
		return statusError(resp)
	}
	resp.Body.Close()
	return u.moved(resp.Request.URL, resp)
}

// reached asks how many bytes the session has (distribution spec, "Resuming").
func (u *upload) reached(ctx context.Context, size int64) (int64, error) {
	resp, err := u.r.exchange(ctx, u.e, u.request(http.MethodGet, u.url))
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusNoContent {
		return 0, statusError(resp)
	}
	resp.Body.Close()
	if resp.Header.Get("Location") != "" {
		if err := u.moved(resp.Request.URL, resp); err != nil {
			return 0, err
		}
	}
	_, last, ok := strings.Cut(resp.Header.Get("Range"), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || err != nil || n <= 0 || n >= size { // "0-0" may mean one byte or none
		return 0, nil
	}
	return n + 1, nil
}

// PutManifest stores a manifest or index under its digest, or under a tag. All
// that it names must be there already.
func (r *Remote) PutManifest(ctx context.Context, d ocispec.Descriptor, data []byte, tag string) error {
	op := "push manifest " + d.Digest.String() + " to " + r.ref.Name()
	object, err := objectName(op, d, tag)
	if err != nil {
		return err
	}
	if err := checkContent(data, d); err != nil {
		return errs.New(errs.InvalidArgument, "%s: the content is not what the descriptor says", op)
	}
	return r.ask(ctx, op, r.pushHost(), func(ctx context.Context, e *endpoint, _ bool) error {
		q := r.push(http.MethodPut, e.manifestURL(r.ref.Path, object))
		q.header = http.Header{"Content-Type": {d.MediaType}}
		q.length = int64(len(data))
		q.body = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(data))), nil }
		resp, err := r.exchange(ctx, e, q)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
			return statusError(resp)
		}
		resp.Body.Close()
		return checkSaid(resp, d.Digest)
	})
}
