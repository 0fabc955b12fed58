package restart

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/store"
)

// patience is how long a container that is to be removed at its end may be without a
// task whose end nobody saw: its client may be about to make it.
const patience = time.Minute

// removable decides whether a container that wants it has come to its end.
func (k *Keeper) removable(c store.Container, w watched, gone, stopped bool) step {
	switch {
	case stopped, gone && w.ended.After(c.CreatedAt):
		return step{remove: true}
	case !gone:
		return step{}
	}
	if ripe := c.UpdatedAt.Add(patience); ripe.After(time.Now()) {
		return step{wait: ripe}
	}
	return step{remove: true}
}

// remove takes a container away whose end was all that it was kept for: its task, the
// directory that its client made for it, and its row with its snapshot.
func (k *Keeper) remove(ctx context.Context, v store.Scoped, c store.Container) error {
	if _, err := k.cfg.Tasks.Delete(ctx, v, c.ID); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	if err := k.removeDir(c.Labels[label.Dir]); err != nil {
		return err
	}
	// Last of all but the row, which is how the pod is found again.
	if pod := c.Labels[label.Pod]; pod != "" && k.cfg.RemovePod != nil {
		if err := k.cfg.RemovePod(ctx, v.Namespace(), pod); err != nil && !errs.Is(err, errs.NotFound) {
			return fmt.Errorf("remove the pod that gave it its network: %w", err)
		}
	}
	return k.cfg.GC.Remove(ctx, v, false, func(tx *store.Tx) error {
		if c.SnapshotKey != "" {
			if err := tx.RemoveSnapshot(c.Snapshotter, c.SnapshotKey); err != nil && !errs.Is(err, errs.NotFound) {
				return err
			}
		}
		return tx.DeleteContainer(c.ID)
	})
}

// removeDir removes a directory right below ours; a label is nothing to follow
// anywhere else.
func (k *Keeper) removeDir(dir string) error {
	if dir == "" {
		return nil
	}
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || filepath.Dir(dir) != k.cfg.Dirs {
		k.cfg.Log.Warn("a container's directory is left: it is none of ours", "dir", dir, "ours", k.cfg.Dirs)
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the container's directory: %w", err)
	}
	return nil
}
