package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/carry"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/rootfs"
	"github.com/berthd/berth/cli/session"
)

// volume finds a named volume or makes it. A new one gets what the image has at the
// place where it is mounted.
func (k *creation) volume(name, at string, mounts []*types.Mount) (string, error) {
	dir := k.places.Volume(k.c.Namespace, name)
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return dir, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if there, err := rootfs.Exists(mounts, at); err == nil && there {
		if err := copyUp(mounts, at, tmp); err != nil {
			return "", fmt.Errorf("fill it with what the image has there: %w", err)
		}
	}
	err = os.Rename(tmp, dir)
	if errors.Is(err, os.ErrExist) { // somebody else was quicker
		return dir, nil
	}
	return dir, err
}

// copyUp copies a directory of a root file system into one of this machine.
func copyUp(mounts []*types.Mount, from, to string) error {
	return rootfs.With(mounts, func(root string) error {
		pr, pw := io.Pipe()
		var g errgroup.Group
		g.Go(func() error {
			err := carry.Pack(pw, root, from+"/.", true)
			_ = pw.CloseWithError(err) // never fails
			return err
		})
		err := carry.Unpack(pr, carry.Target{Root: to, Path: "/", Owners: true})
		_ = pr.CloseWithError(errCopyStopped) // never fails
		return errors.Join(err, errs.Ignore(g.Wait(), errCopyStopped))
	})
}

// volumeRow is a volume as lists show it.
type volumeRow struct{ Name, Path, Created, UsedBy string }

func (a *app) volumeCommand() *cobra.Command {
	return session.Noun("volume", "Work with named volumes", []string{"volumes"}, a.volumeLs(), a.volumeCreate(), a.volumeRm())
}

// volumeUsers maps volumes' directories to the containers that mount them.
func volumeUsers(ctx context.Context, c *client.Client) (map[string]string, error) {
	l, err := c.Containers().List(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, k := range l.GetContainers() {
		for _, m := range specOf(k).Mounts {
			if out[m.Source] != "" {
				out[m.Source] += ","
			}
			out[m.Source] += client.DisplayName(k)
		}
	}
	return out, nil
}

func (a *app) volumeLs() *cobra.Command {
	var l session.Listing
	cmd := l.Add(&cobra.Command{Use: "ls", Short: "List volumes", Args: session.ExactArgs(0), Example: "  berth volume ls"}, false)
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		pl, err := c.Places(ctx)
		if err != nil {
			return err
		}
		users, err := volumeUsers(ctx, c)
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(pl.Volume(c.Namespace, ""))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		var rows []volumeRow
		for _, e := range entries {
			st, err := e.Info()
			if err != nil || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			path := pl.Volume(c.Namespace, e.Name())
			rows = append(rows, volumeRow{e.Name(), path, st.ModTime().Local().Format(time.RFC3339), users[path]})
		}
		return session.Print(a.App, l, rows, func(r volumeRow) string { return r.Name }, "NAME", "USED BY=UsedBy", "PATH")
	})
	return cmd
}

func (a *app) volumeCreate() *cobra.Command {
	return &cobra.Command{
		Use: "create NAME", Short: "Make an empty volume; run -v NAME:/path makes one, too", Args: session.ExactArgs(1), Example: "  berth volume create data",
		RunE: a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
			if err := id.Check("volume name", args[0]); err != nil {
				return err
			}
			pl, err := c.Places(ctx)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(pl.Volume(c.Namespace, args[0]), 0o755); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, args[0])
			return nil
		}),
	}
}

func (a *app) volumeRm() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Short: "Remove volumes that no container mounts, with all that is in them", Args: session.MinArgs(1), Aliases: []string{"remove"}, Example: "  berth volume rm data",
		RunE: a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
			pl, err := c.Places(ctx)
			if err != nil {
				return err
			}
			users, err := volumeUsers(ctx, c)
			if err != nil {
				return err
			}
			return a.ForEach(args, func(name string) error {
				if err := id.Check("volume name", name); err != nil {
					return err
				}
				dir := pl.Volume(c.Namespace, name)
				if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
					return errs.New(errs.NotFound, "no such volume: %s; `berth volume ls` lists what there is", name)
				}
				if by := users[dir]; by != "" {
					return errs.New(errs.FailedPrecondition, "volume %s is used by %s: remove that first", name, by)
				}
				return os.RemoveAll(dir)
			})
		}),
	}
}

func (a *app) portCommand() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER", Short: "List a container's published ports", Args: session.ExactArgs(1), ValidArgsFunction: a.completeContainers(true), Example: "  berth port web",
		RunE: a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
			k, err := Find(ctx, c, args[0])
			if err != nil {
				return err
			}
			for _, p := range strings.Split(portsText(k.GetLabels()[client.LabelPorts]), ", ") {
				if host, port, ok := strings.Cut(p, "->"); ok {
					fmt.Fprintf(a.Out, "%s -> %s\n", port, host)
				}
			}
			return nil
		}),
	}
}

func (a *app) exportCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "export [flags] CONTAINER", Short: "Write a container's files as a tar archive", Args: session.ExactArgs(1), ValidArgsFunction: a.completeContainers(false),
		Long: "Write all files of a container, running or not, as a tar archive. Devices and sockets are left out.", Example: "  berth export -o web.tar web",
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		return a.IntoFile(file, func(w io.Writer) error {
			return mounted(ctx, c, k, func(root string) error { return carry.Pack(w, root, "/.", false) })
		})
	})
	cmd.Flags().StringVarP(&file, "output", "o", "", "write to this `file` instead of stdout")
	return cmd
}
