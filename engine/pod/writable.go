package pod

import (
	"context"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/store/snapshot"
)

// sizes remembers what containers' layers take on the disk. A layer must be walked
// to know that; one that takes long to walk is walked seldom.
type sizes struct {
	mu  sync.Mutex
	all map[key]size
}

type size struct {
	snapshot.Usage
	at   time.Time
	took time.Duration
}

// walkShare bounds the part of the time that walks may take: an answer is good for
// so many times as long as its walk took.
const walkShare = 50

func (s *sizes) get(k key) (size, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got, ok := s.all[k]
	return got, ok && time.Since(got.at) < walkShare*got.took
}

func (s *sizes) put(k key, v size) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[key]size{}
	}
	s.all[k] = v
}

func (s *sizes) forget(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, k)
}

// layerSize measures a container's own layer.
func (p *Pods) layerSize(ctx context.Context, c *Container) (size, error) {
	k := key{c.Namespace, c.ID}
	if got, ok := p.sizes.get(k); ok {
		return got, nil
	}
	begin := time.Now()
	u, err := p.scope(c.Namespace).SnapshotUsage(ctx, c.Snapshot, c.ID)
	if err != nil {
		return size{}, err
	}
	got := size{Usage: u, at: time.Now(), took: time.Since(begin)}
	p.sizes.put(k, got)
	return got, nil
}

// writable is what a container has written into its root file system.
func (p *Pods) writable(ctx context.Context, c *Container) *cri.FilesystemUsage {
	got, err := p.layerSize(ctx, c)
	if err != nil {
		if !errs.Is(err, errs.NotFound) {
			p.log.Debug("size of a container's layer", "container", c.ID, "error", err)
		}
		return nil
	}
	root := ""
	if d, err := p.store.Driver(c.Snapshot); err == nil {
		root = d.Root()
	}
	return &cri.FilesystemUsage{
		Timestamp: got.at.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: root}, UsedBytes: value(uint64(got.Size)), InodesUsed: value(uint64(got.Inodes)),
	}
}
