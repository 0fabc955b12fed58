package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
)

const (
	maxForeignURLs = 8 // of one descriptor that are tried
	patience       = 3 // times that a slow body is left for another one
	maxReported    = 8 // interruptions that an error tells of
)

// Blob reads one blob over as many connections and hosts as it takes.
//
//	open ──bytes──► … ──all there──► EOF, exactly at the size
//	  ▲                │ cut, stalled, too slow: the rest by Range, from
//	  └────────────────┘ the same host first if it gave bytes, else the next
//
// A Blob is for one goroutine. It checks the length, not the digest.
type Blob struct {
	r   *Remote
	ctx context.Context // of FetchBlob: the blob lives as long as that call's context
	d   ocispec.Descriptor
	op  string
	pos int64
	end int64

	body   io.ReadCloser
	cancel context.CancelCauseFunc
	w      *watch
	from   *endpoint
	ranged bool  // the present body is the answer to a Range
	opened int64 // pos when the present body was opened

	err      error // final
	tries    int   // in a row, without a byte that counts
	reopened int
	slow     int               // how often the body was too slow
	avoid    *endpoint         // asked last when the next body is opened
	noRange  map[*endpoint]any // hosts that answer Ranges with nonsense
	troubles []Attempt
}

// FetchBlob opens a blob at offset; reading gives exactly the bytes from there to
// d.Size. Where the registry has not got it, the descriptor's own URLs are tried,
// without credentials. Errors of Read are of the kinds of Resolve. ctx covers
// reading too.
func (r *Remote) FetchBlob(ctx context.Context, d ocispec.Descriptor, offset int64) (*Blob, error) {
	return r.openBlob(ctx, d, offset, d.Size)
}

func (r *Remote) openBlob(ctx context.Context, d ocispec.Descriptor, from, to int64) (*Blob, error) {
	op := "fetch blob " + clean(d.Digest.String(), 150) + " of " + r.ref.Name()
	if err := imageref.CheckDigest(d.Digest); err != nil {
		return nil, errs.New(errs.InvalidArgument, "%s: %w", op, err)
	}
	if d.Size < 0 {
		return nil, errs.New(errs.InvalidArgument, "%s: the descriptor has size %d", op, d.Size)
	}
	if from < 0 || from > to || to > d.Size {
		return nil, errs.New(errs.OutOfRange, "%s: bytes %d to %d of %d", op, from, to, d.Size)
	}
	b := &Blob{r: r, ctx: ctx, d: d, op: op, pos: from, end: to, noRange: map[*endpoint]any{}}
	if from < to {
		if err := b.open(); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Host says which host the bytes come from at present.
func (b *Blob) Host() string {
	if b.from == nil {
		return ""
	}
	return b.from.host
}

// Reopened counts how often the transfer was taken up again.
func (b *Blob) Reopened() int { return b.reopened }

// Read implements io.Reader.
func (b *Blob) Read(p []byte) (int, error) {
	for {
		switch {
		case b.err != nil:
			return 0, b.err
		case b.pos == b.end:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		if b.body == nil {
			if b.err = b.open(); b.err != nil {
				return 0, b.err
			}
		}
		n, err := b.w.read(b.body, p[:min(int64(len(p)), b.end-b.pos)])
		b.pos += int64(n)
		if b.pos == b.end {
			b.release(errClosed) // whatever a host sends beyond the size is not read
			return n, nil
		}
		if err != nil {
			b.err = b.interrupted(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// Close ends the transfer.
func (b *Blob) Close() error {
	b.release(errClosed)
	if b.err == nil {
		b.err = errs.New(errs.FailedPrecondition, "%s: read after close", b.op)
	}
	return nil
}

func (b *Blob) release(why error) {
	if b.body != nil {
		b.w.stop()
		b.cancel(why)
		b.body.Close()
		b.body = nil
	}
}

// interrupted decides what follows a body that broke off: nil means go on.
func (b *Blob) interrupted(err error) error {
	if cause := b.cause(); cause != nil {
		err = cause
	}
	from, gained := b.from, b.pos-b.opened
	b.release(err)
	if b.ctx.Err() != nil {
		return errs.New(kindOfContext(b.ctx), "%s: %w", b.op, context.Cause(b.ctx))
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	err = errs.New(errs.Unavailable, "after %d of %d bytes: %w", b.pos, b.d.Size, &netError{err: err})
	b.trouble(Attempt{Host: b.r.spoken(from), Err: err})

	b.avoid = from
	switch {
	case errors.Is(err, errDead) || gained == 0:
		b.tries++
	case errors.Is(err, errSlow):
		b.slow++
		b.tries = 0
	case errors.Is(err, errStall):
		b.tries = 0
	default: // cut, but it gave bytes: the same host first
		b.tries = 0
		b.avoid = nil
	}
	if b.reopened++; b.tries >= b.r.c.limits.Attempts || b.reopened > 64+int(b.d.Size>>20) {
		return &Failure{Op: b.op, Attempts: b.troubles, kind: errs.Unavailable}
	}
	b.r.c.log.Warn("blob transfer broke off and goes on", "op", b.op, "host", from.host, "problem", err.Error())
	if b.tries > 0 {
		wait, _ := b.r.pause(err, b.tries-1)
		if e := sleep(b.ctx, wait); e != nil {
			return errs.New(kindOfContext(b.ctx), "%s: %w", b.op, e)
		}
	}
	return nil
}

// cause is why our own watch cancelled the body, nil if it did not.
func (b *Blob) cause() error {
	if c, ok := b.body.(*blobBody); ok {
		return context.Cause(c.ctx)
	}
	return nil
}

func (b *Blob) trouble(a Attempt) {
	if len(b.troubles) == maxReported {
		b.troubles = slices.Delete(b.troubles, 1, 2)
	}
	b.troubles = append(b.troubles, a)
}

// blobBody is a body with the context that its watch cancels.
type blobBody struct {
	io.ReadCloser
	ctx context.Context
}

// open finds a host that gives the rest of the blob.
func (b *Blob) open() error {
	hosts := b.r.with(canPull)
	if i := slices.Index(hosts, b.avoid); i >= 0 {
		hosts = append(slices.Delete(hosts, i, i+1), b.avoid)
	}
	err := b.r.ask(b.ctx, b.op, hosts, b.openAt)
	if errs.Is(err, errs.NotFound) && len(b.d.URLs) > 0 {
		return b.openForeign(err)
	}
	return err
}

func (b *Blob) openAt(_ context.Context, e *endpoint, quick bool) error {
	q := b.r.pull(http.MethodGet, e.blobURL(b.r.ref.Path, b.d.Digest), quick)
	_, whole := b.noRange[e]
	err := b.request(e, q, !whole)
	var bad *rangeError
	if errors.As(err, &bad) && !whole {
		b.noRange[e] = nil
		err = b.request(e, q, false)
	}
	return err
}

// openForeign tries the URLs that the image itself names. They get no credential
// and no configured header, and may not lead closer to us than the registry is.
func (b *Blob) openForeign(missing error) error {
	e := b.r.endpoints[len(b.r.endpoints)-1]
	var fail *Failure
	if !errors.As(missing, &fail) {
		return missing
	}
	for i, raw := range b.d.URLs {
		u, err := url.Parse(raw)
		if err != nil || u.Hostname() == "" || i >= maxForeignURLs {
			continue
		}
		u.User, u.Fragment = nil, ""
		if u.Scheme != "https" && (u.Scheme != "http" || e.scheme != "http" && !e.orHTTP) {
			err = errs.New(errs.PermissionDenied, "refused scheme %.20q of a URL in the image", u.Scheme)
		} else {
			err = b.request(e, request{method: http.MethodGet, url: u, foreign: true}, true)
		}
		if err == nil {
			return nil
		}
		fail.Attempts = append(fail.Attempts, Attempt{Host: u.Scheme + "://" + u.Host, Err: err})
	}
	return fail
}

// rangeError is an answer that makes no sense for the Range that was asked for.
type rangeError struct{ error }

// request opens a body at b.pos.
func (b *Blob) request(e *endpoint, q request, ranges bool) error {
	ranges = ranges && (b.pos > 0 || b.end < b.d.Size)
	if ranges {
		q.header = http.Header{"Range": {"bytes=" + strconv.FormatInt(b.pos, 10) + "-" + strconv.FormatInt(b.end-1, 10)}}
	}
	ctx, cancel := context.WithCancelCause(b.ctx)
	resp, err := b.r.exchange(ctx, e, q)
	if err != nil {
		cancel(errClosed)
		return err
	}
	skip, err := b.accept(resp, ranges)
	if err != nil {
		cancel(errClosed)
		resp.Body.Close()
		return err
	}
	w := newWatch(b.r.c.limits, cancel)
	if b.slow < patience {
		w.slow = b.r.c.limits.SlowRate
	}
	b.body, b.cancel, b.w, b.from = &blobBody{resp.Body, ctx}, cancel, w, e
	b.opened, b.ranged = b.pos, resp.StatusCode == http.StatusPartialContent
	if skip > 0 {
		if _, err := io.CopyN(io.Discard, w.reader(resp.Body), skip); err != nil {
			if c := context.Cause(ctx); c != nil {
				err = c
			}
			b.release(errClosed)
			return &netError{err: err}
		}
	}
	return nil
}

// accept judges an answer's header; skip is how many of its bytes come before b.pos.
func (b *Blob) accept(resp *http.Response, ranged bool) (skip int64, err error) {
	switch resp.StatusCode {
	case http.StatusOK:
		if n := resp.ContentLength; n >= 0 && n != b.d.Size {
			return 0, errs.New(errs.DataLoss, "the host serves %d bytes, the descriptor says %d", n, b.d.Size)
		}
		return b.pos, nil
	case http.StatusPartialContent:
		first, last, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
		switch {
		case !ok, total >= 0 && total != b.d.Size, last < first, last >= b.d.Size:
			err = errs.New(errs.DataLoss, "the host answers with range %.80q of a blob of %d bytes", resp.Header.Get("Content-Range"), b.d.Size)
		case ranged && first != b.pos, !ranged && first != 0, resp.ContentLength >= 0 && resp.ContentLength != last-first+1:
			err = errs.New(errs.DataLoss, "the host answers with range %d-%d, %d bytes, asked for from %d", first, last, resp.ContentLength, b.pos)
		default:
			return b.pos - first, nil
		}
		return 0, &rangeError{err}
	case http.StatusRequestedRangeNotSatisfiable:
		return 0, &rangeError{statusError(resp)}
	}
	return 0, statusError(resp)
}

func (e *rangeError) Unwrap() error { return e.error }

// parseContentRange reads "bytes first-last/total" (RFC 9110, 14.4); total is -1
// for "*".
func parseContentRange(v string) (first, last, total int64, ok bool) {
	spec, okay := strings.CutPrefix(v, "bytes ")
	span, size, okay2 := strings.Cut(strings.TrimSpace(spec), "/")
	a, z, okay3 := strings.Cut(span, "-")
	if !okay || !okay2 || !okay3 {
		return 0, 0, 0, false
	}
	number := func(s string) int64 {
		n, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return -1
		}
		return int64(n)
	}
	first, last, total = number(a), number(z), number(size)
	return first, last, total, first >= 0 && last >= 0 && (total >= 0 || size == "*")
}
