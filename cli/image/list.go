package image

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/platforms"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/table"
)

// imageRow is an image as lists show it.
type imageRow struct {
	Repository, Tag, Digest, ID, Name, CreatedAt, CreatedSince, Size, Platform string
	created                                                                    time.Time
}

func (a *app) imagesCommand() *cobra.Command {
	var quiet, digests, noTrunc bool
	var format string
	var filters []string
	cmd := &cobra.Command{
		Use: "images [flags] [NAME[:TAG]]", Short: "List images",
		Example: `  berth images
  berth images -q
  berth images --format '{{.Repository}}:{{.Tag}} {{.Size}}'
  berth images --filter 'name~=busybox'`,
		Args: session.RangeArgs(0, 1), ValidArgsFunction: a.completeImages,
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		rows, err := listImages(ctx, c, filters, noTrunc)
		if err != nil {
			return err
		}
		if len(args) == 1 {
			rows = named(rows, args[0])
		}
		if quiet {
			seen := map[string]bool{}
			for _, r := range rows {
				if !seen[r.ID] {
					fmt.Fprintln(a.Out, r.ID)
				}
				seen[r.ID] = true
			}
			return nil
		}
		columns := []string{"REPOSITORY", "TAG", "IMAGE ID=ID", "CREATED=CreatedSince", "PLATFORM", "SIZE"}
		if digests {
			columns = []string{"REPOSITORY", "TAG", "DIGEST", "IMAGE ID=ID", "CREATED=CreatedSince", "PLATFORM", "SIZE"}
		}
		return table.Write(a.Out, rows, format, table.Columns(columns...))
	})
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "print digests only")
	f.BoolVar(&digests, "digests", false, "show digests")
	f.BoolVar(&noTrunc, "no-trunc", false, "do not shorten digests")
	f.StringVar(&format, "format", "", "table, json or a Go `template`")
	f.StringArrayVar(&filters, "filter", nil, "a `filter` of the daemon, as name~=busybox or labels.KEY==VALUE; several: any of them")
	return cmd
}

// named keeps the images of a repository, or of one of its tags.
func named(rows []imageRow, name string) []imageRow {
	var out []imageRow
	for _, r := range rows {
		full, err := FullName(name)
		if r.Repository == name || r.Repository+":"+r.Tag == name || err == nil && r.Name == full {
			out = append(out, r)
		}
	}
	return out
}

func listImages(ctx context.Context, c *client.Client, filters []string, noTrunc bool) ([]imageRow, error) {
	l, err := c.Images().List(ctx, &imagesapi.ListImagesRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	rows := make([]imageRow, len(l.GetImages()))
	var g errgroup.Group
	g.SetLimit(8)
	for i, im := range l.GetImages() {
		g.Go(func() error {
			rows[i] = describeImage(ctx, c, im, noTrunc)
			return nil
		})
	}
	_ = g.Wait() // it returns none
	sort.SliceStable(rows, func(i, j int) bool {
		if !rows[i].created.Equal(rows[j].created) {
			return rows[i].created.After(rows[j].created)
		}
		return rows[i].Name < rows[j].Name
	})
	return rows, nil
}

// describeImage reads what the list does not have. An image of which nothing for
// this machine is here shows what it can.
func describeImage(ctx context.Context, c *client.Client, im *imagesapi.Image, noTrunc bool) imageRow {
	r := imageRow{Name: im.GetName(), Digest: im.GetTarget().GetDigest(), Size: "-", Platform: "-"}
	r.Repository, r.Tag = splitName(im.GetName())
	if r.ID = shortDigest(r.Digest); noTrunc {
		r.ID = r.Digest
	}
	r.created = im.GetCreatedAt().AsTime()
	if full, err := OpenAny(ctx, c, im); err == nil {
		if t := full.Spec.Created; t != nil && t.Unix() > 0 {
			r.created = *t
		}
		r.Size, r.Platform = table.Size(full.Size()), platforms.Format(full.Spec.Platform)
	}
	r.CreatedAt, r.CreatedSince = r.created.Local().Format(time.RFC3339), table.Ago(r.created, time.Now())
	return r
}

// OpenAny opens an image for this machine, or else for any that is here.
func OpenAny(ctx context.Context, c *client.Client, im *imagesapi.Image) (client.Image, error) {
	out, err := c.Open(ctx, im, "")
	if err == nil {
		return out, nil
	}
	return c.OpenFirst(ctx, im)
}

func (a *app) tagCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "tag SOURCE NAME[:TAG]", Short: "Give an image one more name",
		Example: "  berth tag busybox registry.example.com/me/busybox:1",
		Args:    session.ExactArgs(2), ValidArgsFunction: a.completeImages,
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		im, err := Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		name, err := FullName(args[1])
		if err != nil {
			return err
		}
		if strings.Contains(name, "@") {
			return errs.New(errs.InvalidArgument, "image name %q: a new name has a tag and no digest", args[1])
		}
		next := &imagesapi.Image{Name: name, Target: im.GetTarget(), Labels: im.GetLabels()}
		_, err = c.Images().Create(ctx, &imagesapi.CreateImageRequest{Image: next})
		if errs.Is(err, errs.AlreadyExists) {
			_, err = c.Images().Update(ctx, &imagesapi.UpdateImageRequest{Image: next})
		}
		return err
	})
	return cmd
}

func (a *app) rmiCommand() *cobra.Command {
	var force, async bool
	cmd := &cobra.Command{
		Use: "rmi [flags] IMAGE...", Short: "Remove images",
		Long: `Remove names of images. When the last name is gone, so is the content that nothing else uses:
the command returns when that is deleted, unless --async is given.`,
		Example: "  berth rmi busybox\n  berth rmi -f $(berth images -q)",
		Args:    session.MinArgs(1), ValidArgsFunction: a.completeImages,
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		users, err := imageUsers(ctx, c)
		if err != nil {
			return err
		}
		return a.ForEach(args, func(ref string) error {
			im, err := Find(ctx, c, ref)
			if err != nil {
				return err
			}
			if by := users[im.GetName()]; by != "" && !force {
				return errs.New(errs.FailedPrecondition, "image %s is used by container %s: remove that first, or use -f to remove the name only", ref, by)
			}
			_, err = c.Images().Delete(ctx, &imagesapi.DeleteImageRequest{Name: im.GetName(), Sync: !async})
			return err
		})
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if containers use the image; their files stay")
	cmd.Flags().BoolVar(&async, "async", false, "do not wait until unused content is deleted")
	return cmd
}

// imageUsers maps names of images to a container that was made from each.
func imageUsers(ctx context.Context, c *client.Client) (map[string]string, error) {
	l, err := c.Containers().List(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, k := range l.GetContainers() {
		out[k.GetImage()] = client.DisplayName(k)
	}
	return out, nil
}
