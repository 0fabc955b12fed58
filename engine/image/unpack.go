package image

import (
	"context"
	"fmt"

	"github.com/berthd/berth/store"
)

// Unpack makes the snapshots of an image whose content is here.
func (i *Images) Unpack(ctx context.Context, v store.Scoped, name string, c Choice, targets []Target, watch Watcher) error {
	im, err := store.Get(ctx, v, func(tx *store.Tx) (store.Image, error) { return tx.Image(name) })
	if err != nil {
		return err
	}
	if watch == nil {
		watch = func(Progress) {}
	}
	err = i.leased(ctx, v, "unpack "+name, func(v store.Scoped) error {
		t := i.transfer(v, name, watch)
		return t.metered(ctx, func(ctx context.Context) error {
			_, err := t.bring(ctx, im.Target, c, targets)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	return nil
}

// Tag gives an image one more name. An existing one is moved only by force.
func (i *Images) Tag(ctx context.Context, v store.Scoped, from, to string, force bool, labels map[string]string) (store.Image, error) {
	return store.Set(ctx, v, func(tx *store.Tx) (store.Image, error) {
		im, err := tx.Image(from)
		if err != nil {
			return im, err
		}
		out := store.Image{Name: to, Target: im.Target, Labels: labels}
		if labels == nil {
			out.Labels = im.Labels
		}
		if force {
			return tx.PutImage(out)
		}
		return tx.CreateImage(out)
	})
}
