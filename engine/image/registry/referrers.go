package registry

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
)

const (
	maxPages     = 256     // of one list
	maxReferrers = 10_000  // descriptors of one answer
	maxTags      = 200_000 // names of one repository
)

// Referrers lists the manifests that name d as their subject, of one artifact
// type if that is not empty. Registries without the API are asked for the tag
// that stands in for it (distribution spec 1.1, "Listing Referrers"). None is not
// an error. More than 10,000, or 256 pages, is ResourceExhausted: an incomplete
// list must not look like a complete one.
func (r *Remote) Referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	op := "list referrers of " + clean(d.String(), 150) + " in " + r.ref.Name()
	if err := imageref.CheckDigest(d); err != nil {
		return nil, errs.New(errs.InvalidArgument, "%s: %w", op, err)
	}
	hosts := r.with(canReferrers)
	if len(hosts) == 0 {
		hosts = r.with(canResolve)
	}
	var out []ocispec.Descriptor
	err := r.ask(ctx, op, hosts, func(ctx context.Context, e *endpoint, quick bool) error {
		query := url.Values{}
		if artifactType != "" {
			query.Set("artifactType", artifactType)
		}
		q := r.pull(http.MethodGet, e.url(r.ref.Path, query, "referrers", d.String()), quick)
		q.header = http.Header{"Accept": {ocispec.MediaTypeImageIndex}}
		out = nil
		err := r.pages(ctx, e, q, func(data []byte, resp *http.Response) error {
			if t := contentType(resp); t != ocispec.MediaTypeImageIndex {
				return errs.New(errs.NotFound, "the host answers with %.80q instead of referrers", t)
			}
			list, err := referrersIn(data)
			if out = append(out, list...); err == nil && len(out) > maxReferrers {
				err = errs.New(errs.ResourceExhausted, "more than %d referrers", maxReferrers)
			}
			return err
		})
		if errs.Is(err, errs.NotFound) {
			out, err = r.referrersTag(ctx, e, d)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// Registries may ignore the filter.
	return slices.DeleteFunc(out, func(d ocispec.Descriptor) bool {
		return imageref.CheckDigest(d.Digest) != nil || artifactType != "" && d.ArtifactType != artifactType
	}), nil
}

// referrersTag reads the index that stands in for the API.
func (r *Remote) referrersTag(ctx context.Context, e *endpoint, d digest.Digest) ([]ocispec.Descriptor, error) {
	tag := strings.Replace(d.String(), ":", "-", 1)
	q := r.pull(http.MethodGet, e.manifestURL(r.ref.Path, tag[:min(len(tag), 128)]), false)
	q.header = http.Header{"Accept": {ocispec.MediaTypeImageIndex}}
	data, _, err := r.small(ctx, e, q, r.c.limits.Manifest)
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return referrersIn(data)
}

func referrersIn(data []byte) ([]ocispec.Descriptor, error) {
	var index ocispec.Index
	if json.Unmarshal(data, &index) != nil {
		return nil, errs.New(errs.DataLoss, "the host's list of referrers is not an index")
	}
	return index.Manifests, nil
}

// Tags lists the repository's tags in lexical order. More than 200,000, or 256 pages, is
// ResourceExhausted.
func (r *Remote) Tags(ctx context.Context) ([]string, error) {
	var out []string
	err := r.ask(ctx, "list tags of "+r.ref.Name(), r.with(canResolve), func(ctx context.Context, e *endpoint, quick bool) error {
		out = nil
		q := r.pull(http.MethodGet, e.url(r.ref.Path, nil, "tags", "list"), quick)
		return r.pages(ctx, e, q, func(data []byte, _ *http.Response) error {
			var page struct {
				Tags []string `json:"tags"`
			}
			if json.Unmarshal(data, &page) != nil {
				return errs.New(errs.DataLoss, "the host's list of tags is not JSON")
			}
			for _, t := range page.Tags {
				if imageref.CheckTag(t) == nil {
					out = append(out, t)
				}
			}
			if len(out) > maxTags {
				return errs.New(errs.ResourceExhausted, "more than %d tags", maxTags)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(out) // the spec's order; not every registry keeps it
	return slices.Compact(out), nil
}

// pages reads a list to its end. The next page must be on the same host and below
// the same path.
func (r *Remote) pages(ctx context.Context, e *endpoint, q request, each func([]byte, *http.Response) error) error {
	base := q.url.Path
	for range maxPages {
		data, resp, err := r.small(ctx, e, q, r.c.limits.Manifest)
		if err != nil {
			return err
		}
		if err := each(data, resp); err != nil {
			return err
		}
		link := nextLink(resp.Header.Values("Link"))
		if link == "" {
			return nil
		}
		next, err := q.url.Parse(link)
		if err != nil || urlOrigin(next) != urlOrigin(q.url) || next.Path != base || next.User != nil {
			return errs.New(errs.DataLoss, "the host names %q as the next page", redactText(clean(link, 200)))
		}
		q.url, q.quick = next, false
	}
	return errs.New(errs.ResourceExhausted, "the list has more than %d pages", maxPages)
}

// nextLink finds the target of rel="next" (RFC 8288), "" if there is none.
func nextLink(headers []string) string {
	for _, h := range headers {
		target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(h), "<"), ">")
		if ok && (strings.Contains(params, `rel="next"`) || strings.Contains(params, "rel=next")) {
			return target
		}
	}
	return ""
}
