package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/platforms"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/term"
)

// parsePlatforms reads --platform; none means this machine's, all means every one.
func parsePlatforms(list []string, all bool) ([]*types.Platform, error) {
	if all {
		if len(list) > 0 {
			return nil, errors.New("--platform and --all-platforms exclude each other")
		}
		return nil, nil
	}
	if len(list) == 0 {
		list = []string{platforms.DefaultString()}
	}
	var out []*types.Platform
	for _, s := range list {
		p, err := platforms.Parse(s)
		if err != nil {
			return nil, errs.New(errs.InvalidArgument, "platform %q: use os/arch, as in linux/arm64", s)
		}
		p = platforms.Normalize(p)
		out = append(out, &types.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion})
	}
	return out, nil
}

// unpackings unpacks for each platform with the daemon's snapshotter.
func unpackings(ps []*types.Platform) []*transfer.UnpackConfiguration {
	if len(ps) == 0 {
		p := platforms.DefaultSpec()
		ps = []*types.Platform{{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}}
	}
	var out []*transfer.UnpackConfiguration
	for _, p := range ps {
		out = append(out, &transfer.UnpackConfiguration{Platform: p})
	}
	return out
}

// Pull brings an image in, by its full name, and shows how it gets on.
func Pull(ctx context.Context, s *session.App, c *client.Client, name string, r RegistryFlags) error {
	return (&app{s}).pull(ctx, c, name, r)
}

// pull is Pull.
func (a *app) pull(ctx context.Context, c *client.Client, name string, r RegistryFlags) error {
	ps, err := parsePlatforms(r.Platforms, r.All)
	if err != nil {
		return err
	}
	src, end, err := a.registry(ctx, c, name, r)
	if err != nil {
		return err
	}
	watch, done := a.show(r.Quiet)
	err = c.Transfer(ctx, src, &transfer.ImageStore{Name: name, Platforms: ps, Unpacks: unpackings(ps)}, watch)
	done()
	return explainAuth(errors.Join(err, end()), name)
}

// explainAuth says how to log in where a registry wants that.
func explainAuth(err error, name string) error {
	if errs.Is(err, errs.Unauthenticated) || errs.Is(err, errs.PermissionDenied) {
		host := name
		if full, nerr := FullName(name); nerr == nil {
			host = full
		}
		return fmt.Errorf("%w; log in with `berth login %s`, or check the image's name", err, hostOf(host))
	}
	return err
}

func (a *app) pullCommand() *cobra.Command {
	var r RegistryFlags
	cmd := &cobra.Command{
		Use: "pull [flags] IMAGE", Short: "Get an image from a registry",
		Long: `Get an image from a registry and unpack it. A name without a host is docker.io's, one without a
tag is latest. Credentials are those of "berth login" (Docker's config.json and its helpers).`,
		Example: `  berth pull busybox
  berth pull --platform linux/arm64 ghcr.io/me/app:1.2
  berth pull --plain-http registry.local:5000/app`,
		Args: session.ExactArgs(1),
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := FullName(args[0])
		if err != nil {
			return err
		}
		if err := a.pull(ctx, c, name, r); err != nil {
			return err
		}
		im, err := c.Images().Get(ctx, &imagesapi.GetImageRequest{Name: name})
		if err != nil {
			return err
		}
		if !r.Quiet {
			fmt.Fprintln(a.Err, "Digest:", im.GetImage().GetTarget().GetDigest())
		}
		fmt.Fprintln(a.Out, name)
		return nil
	})
	r.add(cmd)
	return cmd
}

func (a *app) pushCommand() *cobra.Command {
	var r RegistryFlags
	cmd := &cobra.Command{
		Use: "push [flags] IMAGE", Short: "Send an image to a registry",
		Long: `Send an image to the registry that its name says. Of an index, what is here is sent.`,
		Example: `  berth tag app registry.example.com/me/app:1
  berth push registry.example.com/me/app:1`,
		Args: session.ExactArgs(1), ValidArgsFunction: a.completeImages,
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		im, err := Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		var ps []*types.Platform
		if len(r.Platforms) > 0 {
			if ps, err = parsePlatforms(r.Platforms, r.All); err != nil {
				return err
			}
		}
		dst, end, err := a.registry(ctx, c, im.GetName(), r)
		if err != nil {
			return err
		}
		watch, done := a.show(r.Quiet)
		err = c.Transfer(ctx, &transfer.ImageStore{Name: im.GetName(), Platforms: ps}, dst, watch)
		done()
		if err = explainAuth(errors.Join(err, end()), im.GetName()); err != nil {
			return err
		}
		fmt.Fprintln(a.Out, im.GetTarget().GetDigest())
		return nil
	})
	r.add(cmd)
	return cmd
}

func (a *app) saveCommand() *cobra.Command {
	var file string
	var list []string
	var all bool
	cmd := &cobra.Command{
		Use: "save [flags] IMAGE...", Short: "Write images to an archive",
		Long:    `Write images to an OCI archive that "berth load", "docker load" and "ctr images import" read.`,
		Example: "  berth save -o app.tar app:1 app:2\n  berth save app | ssh host berth load",
		Args:    session.MinArgs(1), ValidArgsFunction: a.completeImages,
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) (err error) {
		src := &transfer.ImageStore{}
		for _, ref := range args {
			im, err := Find(ctx, c, ref)
			if err != nil {
				return err
			}
			src.ExtraReferences = append(src.ExtraReferences, &transfer.ImageReference{Name: im.GetName()})
		}
		dst := &transfer.ImageExportStream{AllPlatforms: all}
		if len(list) > 0 {
			if dst.Platforms, err = parsePlatforms(list, all); err != nil {
				return err
			}
		}
		return a.IntoFile(file, func(w io.Writer) error { return export(ctx, c, src, dst, w) })
	})
	f := cmd.Flags()
	f.StringVarP(&file, "output", "o", "", "write to this `file` instead of stdout")
	f.StringSliceVar(&list, "platform", nil, "only these platforms (`os/arch`)")
	f.BoolVar(&all, "all-platforms", false, "fail if any platform is not here")
	return cmd
}

func export(ctx context.Context, c *client.Client, src *transfer.ImageStore, dst *transfer.ImageExportStream, w io.Writer) error {
	side, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.OpenStream(side)
	if err != nil {
		return err
	}
	dst.Stream = s.ID
	var g errgroup.Group
	g.Go(func() error {
		err := s.ReceiveBytes(w)
		if err != nil {
			cancel()
		}
		return err
	})
	err = c.Transfer(side, src, dst, nil)
	if err != nil {
		cancel()
	}
	gerr := g.Wait()
	if err != nil && !errs.Is(err, context.Canceled) {
		return err
	}
	return gerr
}

func (a *app) loadCommand() *cobra.Command {
	var file, base string
	var quiet bool
	var list []string
	cmd := &cobra.Command{
		Use: "load [flags] [NAME]", Short: "Read images from an archive",
		Long: `Read images from an OCI archive or from what "docker save" wrote, plain or compressed, and unpack
them. Images without a name get NAME, or one with the day and their digest.`,
		Example: "  berth load -i app.tar\n  curl -s https://example.com/app.tar.gz | berth load",
		Args:    session.RangeArgs(0, 1), Aliases: []string{"import"},
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		in := io.Reader(a.In)
		if file != "" && file != "-" {
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		} else if term.Is(a.In) {
			return errors.New("nothing to load: use -i FILE, or redirect an archive to stdin")
		}
		if len(args) == 1 {
			base = args[0]
		}
		ps, err := parsePlatforms(list, len(list) == 0)
		if err != nil {
			return err
		}
		names, err := a.load(ctx, c, in, base, ps, quiet)
		for _, n := range names {
			fmt.Fprintln(a.Out, "Loaded image:", Familiar(n))
		}
		return err
	})
	f := cmd.Flags()
	f.StringVarP(&file, "input", "i", "", "read this `file` instead of stdin")
	f.BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	f.StringSliceVar(&list, "platform", nil, "only these platforms (`os/arch`)")
	return cmd
}

// load imports an archive and returns the names that it gave.
func (a *app) load(ctx context.Context, c *client.Client, in io.Reader, base string, ps []*types.Platform, quiet bool) ([]string, error) {
	side, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.OpenStream(side)
	if err != nil {
		return nil, err
	}
	rule := &transfer.ImageReference{Name: "load-" + time.Now().Format(time.DateOnly), IsPrefix: true, AllowOverwrite: true, AddDigest: true, SkipNamedDigest: true}
	if base != "" {
		full, err := FullName(base)
		if err != nil {
			return nil, err
		}
		rule = &transfer.ImageReference{Name: full}
	}
	dst := &transfer.ImageStore{ExtraReferences: []*transfer.ImageReference{rule}, Platforms: ps, Unpacks: unpackings(ps)}
	names := map[string]bool{}
	show, done := a.show(quiet)
	var g errgroup.Group
	g.Go(func() error { return s.SendBytes(in) })
	err = c.Transfer(ctx, &transfer.ImageImportStream{Stream: s.ID}, dst, func(p *transfer.Progress) {
		if p.GetEvent() == "saved" {
			names[p.GetName()] = true
			return
		}
		if show != nil {
			show(p)
		}
	})
	done()
	if err != nil {
		cancel()
		_ = g.Wait() // it ends because the transfer has
		return nil, err
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []string
	for n := range names {
		out = append(out, n)
	}
	sort.Strings(out)
	return out, nil
}
