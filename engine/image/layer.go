package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/archive"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/store"
	"github.com/berthd/berth/store/snapshot"
)

// unpacking is one image on its way into one snapshotter. Where the driver can
// rebase, all layers are filled at once and sealed in order; else each waits for
// the one below.
//
//	layer 0  fetch+fill ──────┬ seal
//	layer 1  fetch+fill ───┐  └──> finish, seal
//	layer 2  fetch+fill ───┴─────────────> finish, seal
type unpacking struct {
	*transfer
	im     image
	sn     string
	rebase bool
	chain  []digest.Digest
	sealed []chan struct{} // closed when the snapshot of that layer is there
}

// maxLayers is how many layers an image may have that is unpacked: overlay takes no
// more lower directories (OVL_MAX_STACK).
const maxLayers = 500

func (t *transfer) unpack(ctx context.Context, im image, sn string) error {
	if len(im.layers) > maxLayers {
		return errs.New(errs.InvalidArgument, "the image has %d layers, at most %d can be mounted", len(im.layers), maxLayers)
	}
	d, err := t.store.Driver(sn)
	if err != nil {
		return err
	}
	u := &unpacking{transfer: t, im: im, sn: sn, chain: chainIDs(im.spec.RootFS.DiffIDs)}
	for _, c := range d.Capabilities() {
		u.rebase = u.rebase || c == snapshot.CapRebase
	}
	for range im.layers {
		u.sealed = append(u.sealed, make(chan struct{}))
	}
	g, gctx := errgroup.WithContext(ctx)
	for n := range im.layers {
		g.Go(func() error {
			if err := u.layer(gctx, n); err != nil {
				return fmt.Errorf("layer %s: %w", im.layers[n].Digest, err)
			}
			close(u.sealed[n])
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(u.chain) == 0 {
		return nil
	}
	top := u.chain[len(u.chain)-1].String()
	return t.addLabels(ctx, im.config, map[string]string{label.GCRefSnapshot + sn: top})
}

// parent is the chain ID below layer n, "" at the bottom.
func (u *unpacking) parent(n int) string {
	if n == 0 {
		return ""
	}
	return u.chain[n-1].String()
}

func (u *unpacking) below(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	select {
	case <-u.sealed[n-1]:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// layer brings the snapshot of one layer about. A blob that was found damaged on
// the way is fetched again, once.
func (u *unpacking) layer(ctx context.Context, n int) error {
	err := u.tryLayer(ctx, n)
	if errs.Is(err, errs.DataLoss) && u.remote != nil && ctx.Err() == nil {
		u.log.Warn("layer is fetched again", "layer", u.im.layers[n].Digest, "error", err)
		err = u.tryLayer(ctx, n)
	}
	return err
}

// tryLayer does it once for all who want the same chain now.
func (u *unpacking) tryLayer(ctx context.Context, n int) error {
	name := u.chain[n].String()
	unlock, err := u.chains.Lock(ctx, u.v.Namespace()+"/"+u.sn+"/"+name)
	if err != nil {
		return err
	}
	defer unlock()
	there, lost, err := u.haveSnapshot(ctx, name)
	if err != nil {
		return err
	}
	if there && !lost {
		return u.fetch(ctx, u.im.layers[n], u.im.manifest.Digest.String())
	}
	key := fmt.Sprintf("extract-%d-%s %s", time.Now().Nanosecond(), id.New(4), name)
	s := store.Snapshot{Snapshotter: u.sn, Name: key, Kind: snapshot.Active, Labels: map[string]string{label.SnapshotRef: name}}
	seal := func(ctx context.Context, sn, key, name, parent string) error {
		return u.v.CommitSnapshot(ctx, sn, key, name, parent, nil)
	}
	if lost {
		u.log.Warn("layer is lost and is unpacked again", "layer", u.im.layers[n].Digest, "snapshotter", u.sn)
		s.Labels, seal = nil, u.v.ReplaceSnapshot
	}
	if !u.rebase {
		if err := u.below(ctx, n); err != nil {
			return err
		}
		s.Parent = u.parent(n)
	}
	if _, err := u.v.MakeSnapshot(ctx, s); errs.Is(err, errs.AlreadyExists) {
		return nil // a remote snapshotter has it, or somebody was quicker
	} else if err != nil {
		return err
	}
	if err := u.fillAndSeal(ctx, n, key, seal); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return errors.Join(err, u.cfg.GC.Remove(clean, u.v, false, func(tx *store.Tx) error { return tx.RemoveSnapshot(u.sn, key) }))
	}
	return nil
}

// haveSnapshot reports whether the layer is unpacked, or was and is lost on the
// disk, and puts it under the lease.
func (u *unpacking) haveSnapshot(ctx context.Context, name string) (there, lost bool, err error) {
	err = u.v.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.Snapshot(u.sn, name); err != nil {
			return err
		}
		return tx.Hold(store.Resource{Type: store.ResourceSnapshot + u.sn, ID: name})
	})
	if err != nil {
		return false, false, errs.Ignore(err, errs.NotFound)
	}
	lost, err = u.v.LostSnapshot(ctx, u.sn, name)
	return true, lost, err
}

func (u *unpacking) fillAndSeal(ctx context.Context, n int, key string, seal func(ctx context.Context, sn, key, name, parent string) error) error {
	open, err := u.fill(ctx, n, key)
	if err != nil {
		return err
	}
	if err := u.below(ctx, n); err != nil {
		return err
	}
	if open.dir != "" {
		parents, ok, err := u.v.Trees(ctx, u.sn, u.parent(n))
		if err != nil {
			return err
		}
		if !ok {
			return errs.New(errs.Internal, "snapshotter %s fills layers and does not show them", u.sn)
		}
		if err := archive.Finish(ctx, open.dir, open.unresolved, parents); err != nil {
			return err
		}
	}
	failpoint.Here("unpack.filled")
	return seal(ctx, u.sn, key, u.chain[n].String(), u.parent(n))
}

// filled is a layer that is written but for what its parents must tell.
type filled struct {
	dir        string // "" if nothing is left to do
	unresolved archive.Unresolved
}

// fill writes one layer into its snapshot.
func (u *unpacking) fill(ctx context.Context, n int, key string) (filled, error) {
	dir, style, ok, err := u.v.Fill(ctx, u.sn, key)
	if err != nil {
		return filled{}, err
	}
	if ok {
		res, err := u.stream(ctx, n, dir, archive.ApplyOptions{Whiteout: style})
		f := filled{dir: dir, unresolved: res.Unresolved}
		if !u.rebase {
			// The parents' files are in the directory itself: nothing is missing.
			f.dir = ""
		}
		return f, err
	}
	mounts, err := u.v.SnapshotMounts(ctx, u.sn, key)
	if err != nil {
		return filled{}, err
	}
	return filled{}, mount.Temp(ctx, mounts, func(root string) error {
		_, err := u.stream(ctx, n, root, archive.ApplyOptions{Whiteout: spec.WhiteoutRemove})
		return err
	})
}

// stream is the one pass: the blob comes from the registry (or the store), is
// stored and hashed, inflated, hashed again and written out, each step at its own
// pace.
func (u *unpacking) stream(ctx context.Context, n int, dir string, o archive.ApplyOptions) (archive.ApplyResult, error) {
	d := u.im.layers[n]
	unlock, err := u.blobs.Lock(ctx, d.Digest.String())
	if err != nil {
		return archive.ApplyResult{}, err
	}
	defer unlock()
	j := u.meter.start("waiting", d, u.im.manifest.Digest.String())
	release, err := u.slot(ctx)
	if err != nil {
		return archive.ApplyResult{}, err
	}
	defer release()
	diff := u.im.spec.RootFS.DiffIDs[n]
	there, err := u.there(ctx, d)
	if err != nil {
		return archive.ApplyResult{}, err
	}
	if there {
		u.meter.turn(j, "extracting")
		res, err := u.fromStore(ctx, d, diff, dir, o, j)
		if err == nil {
			u.meter.end(j, "extracted")
		}
		return res, err
	}
	u.meter.turn(j, "downloading")
	labels := map[string]string{label.Uncompressed: diff.String()}
	for k, v := range u.source {
		labels[k] = v
	}
	ctx, abort := context.WithCancel(ctx)
	defer abort()
	src, err := u.open(ctx, d, labels)
	if err != nil {
		return archive.ApplyResult{}, err
	}
	src.job = j
	res, err := extract(ctx, abort, src, d.MediaType, diff, dir, o)
	if err = errors.Join(err, src.finish(context.WithoutCancel(ctx), err == nil)); err == nil {
		u.meter.end(j, "complete")
	}
	return res, err
}

// fromStore unpacks a blob that is there. One that turns out to be damaged is
// dropped, so that the next pull fetches it.
func (u *unpacking) fromStore(ctx context.Context, d ocispec.Descriptor, diff digest.Digest, dir string, o archive.ApplyOptions, j *job) (archive.ApplyResult, error) {
	f, err := u.v.OpenContent(ctx, d.Digest)
	if err != nil {
		return archive.ApplyResult{}, err
	}
	defer f.Close() // only read from
	hash := d.Digest.Algorithm().Hash()
	res, err := extract(ctx, func() {}, io.TeeReader(f, io.MultiWriter(hash, j)), d.MediaType, diff, dir, o)
	if err == nil {
		return res, u.addLabels(ctx, d, map[string]string{label.Uncompressed: diff.String()})
	}
	if ctx.Err() != nil {
		return res, err
	}
	if _, rest := io.Copy(hash, f); rest == nil && digest.NewDigest(d.Digest.Algorithm(), hash) == d.Digest {
		return res, err // the blob is as the registry has it: the fault is in the image
	}
	err = errs.New(errs.DataLoss, "content %s was damaged on disk (%v) and is dropped: pull again", d.Digest, err)
	return res, errors.Join(err, u.v.Update(ctx, func(tx *store.Tx) error { return tx.DeleteContent(d.Digest) }))
}

// extract inflates and writes a layer, reads src to its end, and checks the diff
// id. On failure it calls abort, which must make reads of src return.
func extract(ctx context.Context, abort func(), src io.Reader, mediaType string, want digest.Digest, dir string, o archive.ApplyOptions) (res archive.ApplyResult, err error) {
	fetched := readAhead(src)
	defer func() {
		if err != nil {
			abort()
		}
		err = errors.Join(err, fetched.Close())
	}()
	plain, err := archive.Decompress(fetched, mediaType)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	inflated := readAhead(plain)
	defer func() {
		if err != nil {
			fetched.end() // what inflates may wait for more
		}
		err = errors.Join(err, inflated.Close())
	}()
	hash := want.Algorithm().Hash()
	if res, err = archive.Apply(ctx, dir, io.TeeReader(inflated, hash), o); err != nil {
		return res, err
	}
	if got := digest.NewDigest(want.Algorithm(), hash); got != want {
		return res, errs.New(errs.FailedPrecondition, "the layer's content has digest %s, its image says %s", got, want)
	}
	// What follows the compressed stream belongs to the blob's digest too.
	_, err = io.Copy(io.Discard, fetched)
	return res, err
}
