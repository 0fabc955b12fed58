// Package image holds the verbs of images: lists, pulls, pushes, archives, names and
// the logins for registries.
package image

import (
	"context"
	"os"
	"strings"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types/transfer"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/credential"
	"github.com/berthd/berth/cli/progress"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/term"
)

// app is one call of the program.
type app struct{ *session.App }

// Commands are the verbs of images.
func Commands(s *session.App) []*cobra.Command {
	a := &app{s}
	return []*cobra.Command{
		a.imagesCommand(), a.pullCommand(), a.pushCommand(), a.tagCommand(), a.rmiCommand(),
		a.saveCommand(), a.loadCommand(), a.loginCommand(), a.logoutCommand(),
	}
}

// FullName is an image's name with all that Docker's short form leaves out.
func FullName(name string) (string, error) {
	r, err := imageref.Normalize(name)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

// Familiar is the short form for tables.
func Familiar(name string) string {
	r, err := imageref.Parse(name)
	if err != nil {
		return name
	}
	return r.Familiar()
}

// Find looks an image up by its name, short or full, or by the beginning of
// its digest.
func Find(ctx context.Context, c *client.Client, ref string) (*imagesapi.Image, error) {
	full, nameErr := FullName(ref)
	if nameErr == nil {
		r, err := c.Images().Get(ctx, &imagesapi.GetImageRequest{Name: full})
		if err == nil {
			return r.GetImage(), nil
		}
		if !errs.Is(err, errs.NotFound) {
			return nil, err
		}
	}
	list, err := c.Images().List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	var found *imagesapi.Image
	for _, im := range list.GetImages() {
		if im.GetName() == ref {
			return im, nil
		}
		if !hasDigest(im, ref) {
			continue
		}
		if found != nil && found.GetTarget().GetDigest() != im.GetTarget().GetDigest() {
			return nil, errs.New(errs.InvalidArgument, "image %q: several digests begin so; give more of it", ref)
		}
		found = im
	}
	if found != nil {
		return found, nil
	}
	if nameErr != nil {
		return nil, nameErr
	}
	return nil, noImage(ctx, c, ref, full)
}

// hasDigest reports whether ref is the beginning of the image's digest.
func hasDigest(im *imagesapi.Image, ref string) bool {
	_, hex, _ := strings.Cut(im.GetTarget().GetDigest(), ":")
	return len(ref) >= 4 && strings.HasPrefix(hex, strings.TrimPrefix(ref, "sha256:"))
}

// noImage says where else the image is, or how to get it.
func noImage(ctx context.Context, c *client.Client, ref, full string) error {
	for _, ns := range c.OtherNamespaces(ctx) {
		if _, err := c.In(ns).Images().Get(ctx, &imagesapi.GetImageRequest{Name: full}); err == nil {
			return errs.New(errs.NotFound, "no such image: %s; it exists in namespace %s; use -n %s", ref, ns, ns)
		}
	}
	return errs.New(errs.NotFound, "no such image: %s; get it with `berth pull %s`", ref, ref)
}

// credentials finds what the user has logged in with; nil if that is nothing.
func credentials() (client.CredentialFunc, error) {
	f, err := credential.Default()
	if err != nil || f.Empty() {
		return nil, err
	}
	return func(ctx context.Context, host string) (client.Credential, error) {
		c, err := f.Get(ctx, host)
		return client.Credential{Username: c.Username, Secret: c.Secret, Refresh: c.Token}, err
	}, nil
}

// RegistryFlags are those of commands that speak to a registry.
type RegistryFlags struct {
	PlainHTTP bool
	HostsDir  string
	Quiet     bool
	Platforms []string
	All       bool
}

func (r *RegistryFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&r.PlainHTTP, "plain-http", false, "speak http to the registry, without TLS")
	f.StringVar(&r.HostsDir, "hosts-dir", "", "`directory` with hosts.toml files (default: the daemon's)")
	f.BoolVarP(&r.Quiet, "quiet", "q", false, "show no progress")
	f.StringSliceVar(&r.Platforms, "platform", nil, "`os/arch[/variant]` instead of the daemon's own; may be repeated")
	f.BoolVar(&r.All, "all-platforms", false, "every platform that the image has")
}

// registry is the registry end of a transfer. close ends its side streams and
// tells what went wrong with the credentials.
func (a *app) registry(ctx context.Context, c *client.Client, name string, r RegistryFlags) (_ *transfer.OCIRegistry, end func() error, _ error) {
	out := &transfer.OCIRegistry{Reference: name, Resolver: &transfer.RegistryResolver{HostDir: r.HostsDir}}
	if r.PlainHTTP {
		out.Resolver.DefaultScheme = "http"
	}
	find, err := credentials()
	if err != nil {
		a.Debugf("%v: going on without credentials", err)
	}
	if find == nil {
		return out, func() error { return nil }, nil
	}
	side, cancel := context.WithCancel(ctx)
	sid, wait, err := c.AnswerAuth(side, find)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	out.Resolver.AuthStream = sid
	return out, func() error { cancel(); return wait() }, nil
}

// show makes the display of a transfer on stderr, so that stdout holds results.
func (a *app) show(quiet bool) (client.Watch, func()) {
	if quiet {
		return nil, func() {}
	}
	var size func() (int, int)
	if f, ok := a.Err.(*os.File); ok && term.Is(f) {
		size = func() (int, int) { return term.Size(f) }
	}
	s := progress.New(a.Err, size)
	return func(p *transfer.Progress) {
		s.Tell(progress.Event{Name: p.GetName(), Status: p.GetEvent(), Done: p.GetProgress(), Total: p.GetTotal(), Quiet: isDocument(p.GetDesc().GetMediaType())})
	}, s.Close
}

// isDocument tells manifests and configs from what is worth a bar.
func isDocument(mediaType string) bool {
	return strings.Contains(mediaType, "manifest") || strings.Contains(mediaType, "index") || strings.Contains(mediaType, "config")
}

// Complete completes the names of images.
func Complete(s *session.App) session.Completion { return (&app{s}).completeImages }

func (a *app) completeImages(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return a.Complete(cmd, word, func(ctx context.Context, c *client.Client) ([]string, error) {
		l, err := c.Images().List(ctx, &imagesapi.ListImagesRequest{})
		var out []string
		for _, im := range l.GetImages() {
			out = append(out, Familiar(im.GetName()))
		}
		return out, err
	})
}

// splitName is repository and tag as tables show them.
func splitName(name string) (repository, tag string) {
	r, err := imageref.Parse(name)
	if err != nil {
		return name, "<none>"
	}
	tag = r.Tag
	if tag == "" {
		tag = "<none>"
	}
	r.Tag, r.Digest = "", ""
	return r.Familiar(), tag
}

func shortDigest(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex[:min(len(hex), 12)]
}
