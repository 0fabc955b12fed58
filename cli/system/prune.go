package system

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/container"
	"github.com/berthd/berth/cli/image"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/term"
)

func (a *app) pruneCommand() *cobra.Command {
	var force, images bool
	cmd := &cobra.Command{
		Use: "prune [flags]", Short: "Remove containers that have ended, and images that nothing uses", Args: session.ExactArgs(0),
		Long: `Remove the containers of the namespace that do not run, and with --images the images that no container
uses. What is removed is listed. Volumes stay: "berth volume rm" removes them.`,
		Example: "  berth prune\n  berth prune -f --images",
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		if !force {
			if err := a.confirm(c.Namespace, images); err != nil {
				return err
			}
		}
		rows, err := container.List(ctx, c, container.ListOptions{All: true, NoTrunc: true})
		if err != nil {
			return err
		}
		used := map[string]bool{}
		var all []error
		for _, r := range rows {
			k, err := c.Containers().Get(ctx, &containersapi.GetContainerRequest{ID: r.ID})
			// One that was only just made is about to be started by somebody.
			young := time.Since(k.GetContainer().GetCreatedAt().AsTime()) < time.Minute
			if err == nil && (r.State == "exited" || r.State == "created" && !young) {
				err = container.Remove(ctx, a.App, c, k.GetContainer(), false)
				if err == nil {
					fmt.Fprintln(a.Out, "container", r.Names)
					continue
				}
			}
			all = append(all, err)
			used[k.GetContainer().GetImage()] = true
		}
		if images {
			all = append(all, a.pruneImages(ctx, c, used))
		}
		return errors.Join(all...)
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().BoolVar(&images, "images", false, "also images that no container uses")
	return cmd
}

func (a *app) confirm(namespace string, images bool) error {
	if !term.Is(a.In) {
		return errors.New("stdin is no terminal to ask at: use -f")
	}
	what := "all containers that do not run"
	if images {
		what += " and all images without a container"
	}
	fmt.Fprintf(a.Err, "Remove %s of namespace %s? [y/N] ", what, namespace)
	line, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil {
		return err
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return errors.New("nothing was removed")
	}
	return nil
}

func (a *app) pruneImages(ctx context.Context, c *client.Client, used map[string]bool) error {
	l, err := c.Images().List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	var gone []string
	for _, im := range l.GetImages() {
		if !used[im.GetName()] {
			gone = append(gone, im.GetName())
		}
	}
	for i, name := range gone {
		// The last one waits until what nothing uses is deleted.
		if _, err := c.Images().Delete(ctx, &imagesapi.DeleteImageRequest{Name: name, Sync: i == len(gone)-1}); err != nil {
			return err
		}
		fmt.Fprintln(a.Out, "image", image.Familiar(name))
	}
	return nil
}
