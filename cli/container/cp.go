package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/carry"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/rootfs"
	"github.com/berthd/berth/cli/session"
)

func (a *app) cpCommand() *cobra.Command {
	var follow, archive bool
	cmd := &cobra.Command{
		Use: "cp [flags] CONTAINER:PATH PATH|-  |  cp [flags] PATH|- CONTAINER:PATH", Short: "Copy files from or into a container",
		Long: `Copy a file or a directory between a container, running or not, and this machine. "-" is a tar stream
on stdin or stdout. A directory goes into one that is there, or becomes the new one; "DIR/." copies
its contents. Devices and sockets are left out.`,
		Example: "  berth cp web:/etc/nginx/nginx.conf .\n  berth cp site/. web:/usr/share/nginx/html\n  berth cp web:/var/log - | tar t",
		Args:    session.ExactArgs(2),
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		src, srcPath, fromContainer := strings.Cut(args[0], ":")
		dst, dstPath, toContainer := strings.Cut(args[1], ":")
		fromContainer = fromContainer && !strings.ContainsAny(src, "/.")
		toContainer = toContainer && !strings.ContainsAny(dst, "/.")
		switch {
		case fromContainer && toContainer:
			return errors.New("one of the two must be a path of this machine")
		case fromContainer:
			return a.onRootfs(ctx, c, src, func(root string) error {
				return a.copyTree(root, srcPath, follow, carry.Target{Root: "/", Path: absolute(args[1])}, args[1] == "-", false)
			})
		case toContainer:
			return a.onRootfs(ctx, c, dst, func(root string) error {
				t := carry.Target{Root: root, Path: dstPath, Owners: archive}
				return a.copyTree("/", absolute(args[0]), follow, t, false, args[0] == "-")
			})
		}
		return errors.New("say which container: CONTAINER:PATH")
	})
	cmd.Flags().BoolVarP(&follow, "follow-link", "L", false, "copy what a link at the source points to")
	cmd.Flags().BoolVarP(&archive, "archive", "a", false, "keep owners (into a container)")
	return cmd
}

// absolute is a path of this machine from its root; what the end says is kept.
func absolute(p string) string {
	abs, err := filepath.Abs(p)
	if err != nil {
		return p
	}
	for _, end := range []string{"/.", "/"} {
		if strings.HasSuffix(p, end) && !strings.HasSuffix(abs, "/") {
			return abs + end
		}
	}
	if p == "." {
		return abs + "/."
	}
	return abs
}

func (a *app) copyTree(root, from string, follow bool, to carry.Target, toStdout, fromStdin bool) error {
	switch {
	case toStdout:
		return carry.Pack(a.Out, root, from, follow)
	case fromStdin:
		return carry.Unpack(a.In, to)
	}
	pr, pw := io.Pipe()
	var g errgroup.Group
	g.Go(func() error {
		err := carry.Pack(pw, root, from, follow)
		_ = pw.CloseWithError(err) // never fails
		return err
	})
	err := carry.Unpack(pr, to)
	_ = pr.CloseWithError(errCopyStopped) // never fails
	if perr := g.Wait(); perr != nil && !errors.Is(perr, errCopyStopped) {
		return fmt.Errorf("copy: %w", perr)
	}
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return nil
}

var errCopyStopped = errors.New("the other side has stopped")

// onRootfs calls fn with a container's root file system: that of its first process,
// or the snapshot, mounted for the purpose.
func (a *app) onRootfs(ctx context.Context, c *client.Client, ref string, fn func(root string) error) error {
	k, err := Find(ctx, c, ref)
	if err != nil {
		return err
	}
	p, err := TaskOf(ctx, c, k.GetID())
	if err != nil {
		return err
	}
	if IsUp(p) {
		return fn(fmt.Sprintf("/proc/%d/root", p.GetPid()))
	}
	return mounted(ctx, c, k, fn)
}

func mounted(ctx context.Context, c *client.Client, k *containersapi.Container, fn func(root string) error) error {
	m, err := c.Snapshots().Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: k.GetSnapshotter(), Key: k.GetSnapshotKey()})
	if err != nil {
		return err
	}
	return rootfs.With(m.GetMounts(), fn)
}

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff CONTAINER", Short: "List what a container has changed in its image's files",
		Long:    "List the paths that a container has added (A), changed (C) or deleted (D).",
		Example: "  berth diff web", Args: session.ExactArgs(1), ValidArgsFunction: a.completeContainers(false),
		RunE: a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
			k, err := Find(ctx, c, args[0])
			if err != nil {
				return err
			}
			return a.withDiff(ctx, c, k, ocispec.MediaTypeImageLayer, func(c *client.Client, d *diffed) error {
				pr, pw := io.Pipe()
				var g errgroup.Group
				g.Go(func() error {
					err := c.CopyBlob(ctx, pw, d.layer.GetDigest())
					_ = pw.CloseWithError(err) // never fails
					return err
				})
				err := d.list(pr, a.Out)
				_ = pr.CloseWithError(errCopyStopped) // never fails
				return errors.Join(err, errs.Ignore(g.Wait(), errCopyStopped))
			})
		}),
	}
}
