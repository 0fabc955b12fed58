package image

import (
	"context"
	"io"
	"strings"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/host/archive"
)

// WriteChanges writes what a container has changed in its root file system as a plain
// layer. The mounts are those of its snapshot, which must be an overlay.
func WriteChanges(ctx context.Context, w io.Writer, mounts []spec.Mount) error {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return errs.New(errs.Unimplemented, "the changes of a root file system that is no overlay cannot be told from its image")
	}
	var upper string
	var parents []string
	for _, o := range mounts[0].Options {
		switch key, value, _ := strings.Cut(o, "="); key {
		case "upperdir":
			upper = value
		case "lowerdir":
			parents = strings.Split(value, ":")
		}
	}
	if upper == "" {
		return errs.New(errs.FailedPrecondition, "the root file system cannot be written to")
	}
	return archive.DiffUpper(ctx, w, upper, parents, archive.DiffOptions{})
}
