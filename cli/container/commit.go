package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/image"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/table"
)

// commitFlags are those of commit.
type commitFlags struct {
	author, message string
	changes         []string
	pause           bool
}

func (a *app) commitCommand() *cobra.Command {
	var x commitFlags
	cmd := &cobra.Command{
		Use: "commit [flags] CONTAINER NAME[:TAG]", Short: "Make an image of a container's files",
		Example: "  berth commit -m 'with vim' shell me/shell:2\n  berth commit --change 'CMD [\"/srv/run\"]' --change 'ENV A=b' web me/web",
		Args:    session.ExactArgs(2), ValidArgsFunction: session.CompleteFirst(a.completeContainers(false)),
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := Find(ctx, c, args[0])
		if err != nil {
			return err
		}
		name, err := image.FullName(args[1])
		if err != nil {
			return err
		}
		return a.commit(ctx, c, k, name, x)
	})
	f := cmd.Flags()
	f.StringVarP(&x.author, "author", "a", "", "`who` made it")
	f.StringVarP(&x.message, "message", "m", "", "`what` was changed")
	f.StringArrayVarP(&x.changes, "change", "c", nil, "`INSTRUCTION` as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, WORKDIR, STOPSIGNAL")
	f.BoolVar(&x.pause, "pause", true, "freeze the container meanwhile")
	return cmd
}

func (a *app) commit(ctx context.Context, c *client.Client, k *containersapi.Container, name string, x commitFlags) (err error) {
	row, err := c.Images().Get(ctx, &imagesapi.GetImageRequest{Name: k.GetImage()})
	if err != nil {
		return fmt.Errorf("the image of container %s: %w", client.DisplayName(k), err)
	}
	base, err := c.Open(ctx, row.GetImage(), k.GetLabels()[client.LabelPlatform])
	if err != nil {
		return err
	}
	for _, ch := range x.changes {
		if err := applyChange(&base.Spec.Config, ch); err != nil {
			return err
		}
	}
	p, err := TaskOf(ctx, c, k.GetID())
	if err != nil {
		return err
	}
	if x.pause && p.GetStatus() == task.Status_RUNNING {
		if _, err := c.Tasks().Pause(ctx, &tasksapi.PauseTaskRequest{ContainerID: k.GetID()}); err != nil {
			return err
		}
		defer func() {
			_, rerr := c.Tasks().Resume(context.WithoutCancel(ctx), &tasksapi.ResumeTaskRequest{ContainerID: k.GetID()})
			err = errors.Join(err, rerr)
		}()
	}
	return a.withDiff(ctx, c, k, ocispec.MediaTypeImageLayerGzip, func(c *client.Client, d *diffed) error {
		return a.writeImage(ctx, c, name, base, d.layer, x)
	})
}

// writeImage writes the new config, manifest and name; the layer is there.
func (a *app) writeImage(ctx context.Context, c *client.Client, name string, base client.Image, layer *types.Descriptor, x commitFlags) error {
	info, err := c.Content().Info(ctx, &contentapi.InfoRequest{Digest: layer.GetDigest()})
	if err != nil {
		return err
	}
	plain := digest.Digest(info.GetInfo().GetLabels()["containerd.io/uncompressed"])
	if plain.Validate() != nil {
		return errs.New(errs.Internal, "the daemon does not say what layer %s is without its compression", layer.GetDigest())
	}
	now := time.Now().UTC()
	config := base.Spec
	config.Created, config.Author = &now, x.author
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, plain)
	config.History = append(config.History, ocispec.History{Created: &now, Author: x.author, Comment: x.message, CreatedBy: "berth commit"})
	layers := append(base.Layers, ocispec.Descriptor{MediaType: layer.GetMediaType(), Digest: digest.Digest(layer.GetDigest()), Size: layer.GetSize()})
	cd, err := putDocument(ctx, c, ocispec.MediaTypeImageConfig, config, nil)
	if err != nil {
		return err
	}
	refs := map[string]string{"containerd.io/gc.ref.content.config": cd.Digest.String()}
	for i, l := range layers {
		refs[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = l.Digest.String()
	}
	md, err := putDocument(ctx, c, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: cd, Layers: layers,
	}, refs)
	if err != nil {
		return err
	}
	im := &imagesapi.Image{Name: name, Target: &types.Descriptor{MediaType: md.MediaType, Digest: md.Digest.String(), Size: md.Size}}
	_, err = c.Images().Create(ctx, &imagesapi.CreateImageRequest{Image: im})
	if errs.Is(err, errs.AlreadyExists) {
		_, err = c.Images().Update(ctx, &imagesapi.UpdateImageRequest{Image: im})
	}
	if err == nil {
		fmt.Fprintln(a.Out, md.Digest)
		a.Debugf("a layer of %s", table.Size(layer.GetSize()))
	}
	return err
}

// putDocument stores a JSON document.
func putDocument(ctx context.Context, c *client.Client, mediaType string, v any, labels map[string]string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	_, err = c.Ingest(ctx, "commit-"+d.Digest.Encoded(), bytes.NewReader(data), d.Size, d.Digest.String(), labels)
	return d, errs.Ignore(err, errs.AlreadyExists)
}

// applyChange reads one instruction of a Dockerfile.
func applyChange(c *ocispec.ImageConfig, s string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	rest = strings.TrimSpace(rest)
	if rest == "" {
		return errs.New(errs.InvalidArgument, "--change %q: write INSTRUCTION VALUE", s)
	}
	list := func() []string { // the JSON form, or a line for the shell
		var out []string
		if json.Unmarshal([]byte(rest), &out) == nil {
			return out
		}
		return []string{"/bin/sh", "-c", rest}
	}
	switch strings.ToUpper(word) {
	case "CMD":
		c.Cmd = list()
	case "ENTRYPOINT":
		c.Entrypoint = list()
	case "USER":
		c.User = rest
	case "WORKDIR":
		c.WorkingDir = rest
	case "STOPSIGNAL":
		c.StopSignal = rest
	case "ENV":
		k, v, ok := strings.Cut(rest, "=")
		if !ok {
			k, v, _ = strings.Cut(rest, " ")
		}
		c.Env = append(c.Env, k+"="+v)
	case "LABEL":
		k, v, _ := strings.Cut(rest, "=")
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[k] = strings.Trim(v, `"`)
	case "EXPOSE":
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		if !strings.Contains(rest, "/") {
			rest += "/tcp"
		}
		c.ExposedPorts[rest] = struct{}{}
	default:
		return errs.New(errs.InvalidArgument, "--change %q: %s is not known; there are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, WORKDIR and STOPSIGNAL", s, word)
	}
	return nil
}
