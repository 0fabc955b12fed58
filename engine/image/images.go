// Package image brings images in and out: pull, push, unpack, import, export, and
// what is done with them as a whole. It owns no state of its own but the transfers
// that run now; bytes and rows are the store's, the network is registry's.
package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/base/keylock"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/base/tally"
	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/engine/image/registry"
	"github.com/berthd/berth/store"
)

// Config is what images are made with.
type Config struct {
	Store       *store.Store
	Registry    *registry.Client
	GC          *gc.Collector
	Snapshotter string // the default one
	Downloads   int    // layers that one pull fetches at once
	Uploads     int    // blobs that one push sends at once
	Verifiers   Verifiers
	Log         *slog.Logger
}

// Images does everything with images.
type Images struct {
	cfg    Config
	store  *store.Store
	log    *slog.Logger
	pulls  flights     // one pull of the same thing at a time
	chains keylock.Map // one unpack of a layer chain at a time
	blobs  keylock.Map // one fetch of a blob at a time
	infos  infos
	run    string // names this run of the daemon

	tallies Tallies
}

// Tallies count what is done with images.
type Tallies struct {
	Pulls   tally.Times   // that succeeded
	Failed  tally.Counter // pulls that did not
	Pulling tally.Gauge   // under way now
	Fetched tally.Counter // bytes that registries sent
}

// Tallies are the numbers of this daemon's run.
func (i *Images) Tallies() *Tallies { return &i.tallies }

// New returns the verbs.
func New(cfg Config) *Images {
	if cfg.Downloads <= 0 {
		cfg.Downloads = 3
	}
	if cfg.Uploads <= 0 {
		cfg.Uploads = 3
	}
	return &Images{cfg: cfg, store: cfg.Store, log: cfg.Log, run: id.New(8)}
}

// leaseLife bounds how long a transfer that was killed keeps what it had.
const leaseLife = 24 * time.Hour

// leased runs fn in a scope with a lease of its own, so that nothing it makes is
// collected before fn has pointed something lasting at it. If the daemon dies, the
// lease stays for whoever does the same work again and goes on from there; when
// that is done, it goes too.
func (i *Images) leased(ctx context.Context, v store.Scoped, work string, fn func(store.Scoped) error) error {
	work = digest.FromString(work).Encoded()[:32]
	labels := map[string]string{
		label.GCExpire: time.Now().Add(leaseLife).UTC().Format(time.RFC3339), label.LeaseWork: work, label.LeaseRun: i.run,
	}
	l, err := store.Set(ctx, v, func(tx *store.Tx) (store.Lease, error) { return tx.CreateLease(store.Lease{Labels: labels}) })
	if err != nil {
		return err
	}
	err = fn(i.store.In(store.Scope{Namespace: v.Namespace(), Lease: l.ID}))
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	done := err == nil
	return errors.Join(err, i.cfg.GC.Remove(end, v, false, func(tx *store.Tx) error {
		if done {
			if err := i.dropLeftLeases(tx, work); err != nil {
				return err
			}
		}
		return tx.DeleteLease(l.ID)
	}))
}

// dropLeftLeases removes the leases that dead daemons left of a piece of work.
func (i *Images) dropLeftLeases(tx *store.Tx, work string) error {
	all, err := tx.Leases(fmt.Sprintf("labels.%q==%s", label.LeaseWork, work))
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.Labels[label.LeaseRun] == i.run {
			continue
		}
		if err := tx.DeleteLease(l.ID); err != nil {
			return err
		}
	}
	return nil
}

// Choice says which of an image's platforms are wanted.
type Choice struct {
	Platforms   []ocispec.Platform // empty: all
	AllMetadata bool               // manifests and configs of the others too, without layers
	Limit       int                // at most so many manifests of an index, best first; 0: all that match
}

// HostChoice is the best manifest for the machine we run on.
func HostChoice() Choice {
	return Choice{Platforms: []ocispec.Platform{platforms.DefaultSpec()}, Limit: 1}
}

func (c Choice) matcher() platforms.MatchComparer {
	if len(c.Platforms) == 0 {
		return platforms.All
	}
	return platforms.Ordered(c.Platforms...)
}

// Target says what to unpack for whom.
type Target struct {
	Platform    *ocispec.Platform // nil: every platform that is fetched
	Snapshotter string            // "": the default
}

func (i *Images) snapshotter(t Target) string {
	if t.Snapshotter == "" {
		return i.cfg.Snapshotter
	}
	return t.Snapshotter
}

// chainIDs names each prefix of a list of layers, as the OCI image specification
// defines it ("Layer ChainID").
func chainIDs(diffs []digest.Digest) []digest.Digest {
	out := make([]digest.Digest, len(diffs))
	for n, d := range diffs {
		if n == 0 {
			out[n] = d
			continue
		}
		out[n] = digest.FromString(out[n-1].String() + " " + d.String())
	}
	return out
}

// What callers say of a registry. The package that does it is private here.
type (
	RegistryOptions = registry.Options
	Credential      = registry.Credential
	CredentialFunc  = registry.CredentialFunc
)
