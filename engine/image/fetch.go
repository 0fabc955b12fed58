package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/base/tally"
	"github.com/berthd/berth/store"
)

// maxDocument is the largest manifest, index or config that is read into memory,
// in bytes.
const maxDocument = 4 << 20

// document returns a manifest or index, fetched if the store has it not, or has
// it damaged.
func (t *transfer) document(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	return t.small(ctx, d, func() ([]byte, error) { return t.remote.FetchManifest(ctx, d) })
}

func (t *transfer) config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	return t.small(ctx, d, func() ([]byte, error) { return t.remote.FetchSmall(ctx, d) })
}

func (t *transfer) small(ctx context.Context, d ocispec.Descriptor, fetch func() ([]byte, error)) ([]byte, error) {
	unlock, err := t.blobs.Lock(ctx, d.Digest.String())
	if err != nil {
		return nil, err
	}
	defer unlock()
	data, err := t.local(ctx, d)
	if err == nil {
		t.meter.end(t.meter.start("already exists", d, t.parent), "already exists")
		return data, nil
	}
	if t.remote == nil {
		return nil, err
	}
	if !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.DataLoss) {
		return nil, err
	}
	damaged := errs.Is(err, errs.DataLoss)
	j := t.meter.start("downloading", d, t.parent)
	if data, err = fetch(); err != nil {
		return nil, err
	}
	labels := map[string]string{}
	maps.Copy(labels, t.source)
	kids, err := children(d, data)
	if err != nil {
		return nil, err
	}
	maps.Copy(labels, gcLabels(kids))
	if err := t.write(ctx, d, bytes.NewReader(data), labels, damaged); err != nil {
		return nil, err
	}
	t.meter.end(j, "complete")
	return data, nil
}

// local reads a small blob from the store and checks it: NotFound, or DataLoss if
// it is not what its digest says.
func (t *transfer) local(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	f, err := t.v.OpenContent(ctx, d.Digest)
	if errs.Is(err, errs.NotFound) {
		if _, err = t.v.ShareContent(ctx, d.Digest, t.source); err == nil {
			f, err = t.v.OpenContent(ctx, d.Digest)
		}
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	if f.Size > maxDocument {
		return nil, errs.New(errs.ResourceExhausted, "%s has %d bytes, at most %d are read", d.Digest, f.Size, maxDocument)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	if d.Digest.Algorithm().FromBytes(data) != d.Digest {
		return nil, errs.New(errs.DataLoss, "content %s is damaged", d.Digest)
	}
	// A share made it this namespace's: give it the labels that hold its children.
	return data, t.relabel(ctx, d, data)
}

// relabel makes sure that content holds its children and says where it came from.
func (t *transfer) relabel(ctx context.Context, d ocispec.Descriptor, data []byte) error {
	kids, err := children(d, data)
	if err != nil {
		return err
	}
	return t.addLabels(ctx, d, gcLabels(kids))
}

// addLabels adds labels and the present source to content, and puts it under the
// lease.
func (t *transfer) addLabels(ctx context.Context, d ocispec.Descriptor, labels map[string]string) error {
	return t.v.Update(ctx, func(tx *store.Tx) error {
		c, err := tx.Content(d.Digest)
		if err != nil {
			return err
		}
		all := label.Update(c.Labels, labels)
		for k, repo := range t.source {
			all[k] = addRepo(all[k], repo)
		}
		if err := tx.Hold(store.Resource{Type: store.ResourceContent, ID: d.Digest.String()}); err != nil || maps.Equal(all, c.Labels) {
			return err
		}
		c.Labels = all
		_, err = tx.UpdateContent(c)
		return err
	})
}

// addRepo adds a repository to a comma list.
func addRepo(list, repo string) string {
	for _, r := range strings.Split(list, ",") {
		if r == repo {
			return list
		}
	}
	if list == "" {
		return repo
	}
	return list + "," + repo
}

// write stores what r gives as the content d.
func (t *transfer) write(ctx context.Context, d ocispec.Descriptor, r io.Reader, labels map[string]string, replace bool) error {
	w, err := t.v.Writer(ctx, store.WriterOptions{Ref: refOf(d), Total: d.Size, Expected: d.Digest, Replace: replace})
	if errs.Is(err, errs.AlreadyExists) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }() // what counts was committed
	if w.Offset() > 0 {              // small things are not resumed
		if err := w.Reset(ctx); err != nil {
			return err
		}
	}
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	err = w.Commit(ctx, store.CommitOptions{Size: d.Size, Expected: d.Digest, Labels: labels, Later: true})
	return errs.Ignore(err, errs.AlreadyExists)
}

// fetch brings one blob in without looking into it.
func (t *transfer) fetch(ctx context.Context, d ocispec.Descriptor, parent string) error {
	unlock, err := t.blobs.Lock(ctx, d.Digest.String())
	if err != nil {
		return err
	}
	defer unlock()
	if there, err := t.there(ctx, d); err != nil || there {
		if there {
			t.meter.end(t.meter.start("already exists", d, parent), "already exists")
		}
		return err
	}
	j := t.meter.start("waiting", d, parent)
	release, err := t.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	t.meter.turn(j, "downloading")
	src, err := t.open(ctx, d, t.source)
	if err != nil {
		return err
	}
	src.job = j
	_, err = io.Copy(io.Discard, src)
	if err = errors.Join(err, src.finish(ctx, err == nil)); err != nil {
		return fmt.Errorf("fetch %s: %w", d.Digest, err)
	}
	t.meter.end(j, "complete")
	return nil
}

// there reports whether the store has the blob whole, as far as its size tells,
// and puts it under the lease.
func (t *transfer) there(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	if t.remote == nil && isForeign(d.MediaType) {
		return true, nil // need not be there
	}
	c, err := t.v.ShareContent(ctx, d.Digest, t.source)
	if errs.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	size, err := t.store.Blobs().Size(d.Digest)
	if err != nil || size != c.Size {
		return false, errs.Ignore(err, errs.NotFound)
	}
	return true, t.addLabels(ctx, d, nil)
}

func (t *transfer) slot(ctx context.Context) (release func(), err error) {
	select {
	case t.slots <- struct{}{}:
		return func() { <-t.slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// download reads a blob from where it has to come from, and writes it to the
// store as it goes by. What an earlier try left is read from the store first.
//
//	[ bytes of the ingest ][ bytes of the registry ──> ingest ]
type download struct {
	desc   ocispec.Descriptor
	labels map[string]string
	w      *store.Writer
	old    io.Reader // what the ingest has
	body   io.ReadCloser
	job    *job
	came   *tally.Counter // bytes that registries sent
}

func (t *transfer) open(ctx context.Context, d ocispec.Descriptor, labels map[string]string) (*download, error) {
	if t.remote == nil {
		return nil, errs.New(errs.NotFound, "content %s is not in the store, and %w", d.Digest, errNoRemote)
	}
	w, err := t.v.Writer(ctx, store.WriterOptions{Ref: refOf(d), Total: d.Size, Expected: d.Digest})
	if err != nil {
		return nil, err
	}
	if w.Offset() > d.Size {
		if err := w.Reset(ctx); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	dl := &download{desc: d, labels: labels, w: w, old: w.Reader(), came: &t.tallies.Fetched}
	if w.Offset() < d.Size {
		if dl.body, err = t.remote.FetchBlob(ctx, d, w.Offset()); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return dl, nil
}

// Read implements io.Reader.
func (d *download) Read(p []byte) (int, error) {
	if d.old != nil {
		n, err := d.old.Read(p)
		if n > 0 || err != io.EOF {
			d.count(n)
			return n, err
		}
		d.old = nil
	}
	if d.body == nil {
		return 0, io.EOF
	}
	n, err := d.body.Read(p)
	if n > 0 {
		d.came.Add(uint64(n))
		if _, werr := d.w.Write(p[:n]); werr != nil {
			return 0, werr
		}
		d.count(n)
	}
	return n, err
}

func (d *download) count(n int) {
	if d.job != nil {
		d.job.done.Add(int64(n))
	}
}

// finish commits the blob if all went well. A blob with the wrong digest is
// dropped: to resume from it would never end well.
func (d *download) finish(ctx context.Context, ok bool) error {
	var all []error
	if d.body != nil {
		all = append(all, d.body.Close())
	}
	if ok {
		err := d.w.Commit(ctx, store.CommitOptions{Size: d.desc.Size, Expected: d.desc.Digest, Labels: d.labels, Later: true})
		if errs.Is(err, errs.FailedPrecondition) {
			err = errors.Join(errs.New(errs.DataLoss, "the registry sent something else: %v", err), d.w.Reset(ctx))
		}
		all = append(all, errs.Ignore(err, errs.AlreadyExists))
	}
	return errors.Join(append(all, d.w.Close())...)
}
