package cli

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strings"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/credential"
	"github.com/berthd/berth/cli/progress"
	"github.com/berthd/berth/cli/term"

	"github.com/containerd/containerd/api/types/transfer"
)

func (a *app) imageCommands() []*cobra.Command {
	return []*cobra.Command{
		a.imagesCommand(), a.pullCommand(), a.pushCommand(), a.tagCommand(), a.rmiCommand(),
		a.saveCommand(), a.loadCommand(), a.loginCommand(), a.logoutCommand(),
	}
}

// fullName is an image's name with all that Docker's short form leaves out.
func fullName(name string) (string, error) {
	r, err := imageref.Normalize(name)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

// familiar is the short form for tables.
func familiar(name string) string {
	r, err := imageref.Parse(name)
	if err != nil {
		return name
	}
	return r.Familiar()
}

// findImage looks an image up by its name, short or full, or by the beginning of
// its digest.
func findImage(ctx context.Context, c *client.Client, ref string) (*imagesapi.Image, error) {
	full, nameErr := fullName(ref)
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
	for _, ns := range otherNamespaces(ctx, c) {
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

// registryFlags are those of commands that speak to a registry.
type registryFlags struct {
	plainHTTP bool
	hostsDir  string
	quiet     bool
	platforms []string
	all       bool
}

func (r *registryFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&r.plainHTTP, "plain-http", false, "speak http to the registry, without TLS")
	f.StringVar(&r.hostsDir, "hosts-dir", "", "`directory` with hosts.toml files (default: the daemon's)")
	f.BoolVarP(&r.quiet, "quiet", "q", false, "show no progress")
	f.StringSliceVar(&r.platforms, "platform", nil, "`os/arch[/variant]` instead of the daemon's own; may be repeated")
	f.BoolVar(&r.all, "all-platforms", false, "every platform that the image has")
}

// registry is the registry end of a transfer. close ends its side streams and
// tells what went wrong with the credentials.
func (a *app) registry(ctx context.Context, c *client.Client, name string, r registryFlags) (_ *transfer.OCIRegistry, end func() error, _ error) {
	out := &transfer.OCIRegistry{Reference: name, Resolver: &transfer.RegistryResolver{HostDir: r.hostsDir}}
	if r.plainHTTP {
		out.Resolver.DefaultScheme = "http"
	}
	find, err := credentials()
	if err != nil {
		a.debugf("%v: going on without credentials", err)
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
	var width func() int
	if f, ok := a.err.(*os.File); ok && term.Is(f) {
		width = func() int { w, _ := term.Size(f); return w }
	}
	s := progress.New(a.err, width)
	return func(p *transfer.Progress) {
		s.Tell(progress.Event{Name: p.GetName(), Status: p.GetEvent(), Done: p.GetProgress(), Total: p.GetTotal(), Quiet: isDocument(p.GetDesc().GetMediaType())})
	}, s.Close
}

// isDocument tells manifests and configs from what is worth a bar.
func isDocument(mediaType string) bool {
	return strings.Contains(mediaType, "manifest") || strings.Contains(mediaType, "index") || strings.Contains(mediaType, "config")
}

func (a *app) completeImages(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, word, func(ctx context.Context, c *client.Client) ([]string, error) {
		l, err := c.Images().List(ctx, &imagesapi.ListImagesRequest{})
		var out []string
		for _, im := range l.GetImages() {
			out = append(out, familiar(im.GetName()))
		}
		return out, err
	})
}

// complete lists words that begin as the user's, for a shell.
func (a *app) complete(cmd *cobra.Command, word string, list func(context.Context, *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	if err := a.before(cmd, nil); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	c, err := a.daemon(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := list(cmd.Context(), c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for _, s := range all {
		if strings.HasPrefix(s, word) {
			out = append(out, s)
		}
	}
	sort.Strings(out)
	return out, cobra.ShellCompDirectiveNoFileComp
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

// exactArgs is cobra's check with a message that shows the usage.
func exactArgs(n int) cobra.PositionalArgs { return rangeArgs(n, n) }
func minArgs(n int) cobra.PositionalArgs   { return rangeArgs(n, -1) }

func rangeArgs(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= low && (high < 0 || len(args) <= high) {
			return nil
		}
		return fmt.Errorf("usage: %s; see `%s --help`", cmd.UseLine(), cmd.CommandPath())
	}
}
