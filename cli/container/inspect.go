package container

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/image"
	"github.com/berthd/berth/cli/session"
)

// containerInfo is a container as inspect shows it, by the names that Docker uses.
type containerInfo struct {
	ID              string `json:"Id"`
	Name            string
	Created         time.Time
	Path            string
	Args            []string
	State           stateInfo
	Image           string
	ImageDigest     string
	Platform        string `json:",omitempty"`
	Runtime         string
	Snapshotter     string
	SnapshotKey     string
	LogPath         string
	AttachStdin     bool
	Config          configInfo
	HostConfig      hostInfo
	NetworkSettings networkInfo
	Mounts          []mountInfo
	Labels          map[string]string
	Spec            *rspec.Spec
}

type stateInfo struct {
	Status    string
	Running   bool
	Paused    bool
	Pid       uint32
	ExitCode  uint32
	StartedAt string `json:",omitempty"`
	// FinishedAt is RFC 3339, "" if it has not ended.
	FinishedAt string `json:",omitempty"`
}

type configInfo struct {
	Hostname   string
	User       string
	Tty        bool
	OpenStdin  bool
	Env        []string
	Cmd        []string
	Image      string
	WorkingDir string
	StopSignal string
	Labels     map[string]string
}

type hostInfo struct {
	NetworkMode    string
	RestartPolicy  string
	AutoRemove     bool
	ReadonlyRootfs bool
	Resources      *rspec.LinuxResources `json:",omitempty"`
}

type networkInfo struct {
	Networks  string
	IPAddress string
	Ports     string
	Pod       string `json:",omitempty"`
}

type mountInfo struct {
	Type, Source, Destination string
	Options                   []string
}

// imageInfo is an image as inspect shows it.
type imageInfo struct {
	ID           string `json:"Id"`
	Name         string
	MediaType    string
	Created      *time.Time `json:",omitempty"`
	Architecture string     `json:",omitempty"`
	Os           string     `json:",omitempty"`
	Platform     string     `json:",omitempty"`
	Size         int64
	Config       ocispec.ImageConfig
	RootFS       ocispec.RootFS
	Manifest     ocispec.Descriptor
	Layers       []ocispec.Descriptor
	Labels       map[string]string
}

func (a *app) inspectCommand() *cobra.Command {
	var format, kind string
	cmd := &cobra.Command{
		Use: "inspect [flags] NAME...", Short: "Show everything about containers and images",
		Example: "  berth inspect web\n  berth inspect --format '{{.State.Status}} {{.State.ExitCode}}' web\n  berth inspect --type image busybox",
		Args:    session.MinArgs(1), ValidArgsFunction: a.completeContainers(false),
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		var out []any
		var all []error
		for _, ref := range args {
			v, err := inspectOne(ctx, c, ref, kind)
			if err != nil {
				all = append(all, err)
				continue
			}
			out = append(out, v)
		}
		return errors.Join(append([]error{a.Objects(out, format)}, all...)...)
	})
	cmd.Flags().StringVarP(&format, "format", "f", "", "a Go `template` instead of JSON")
	cmd.Flags().StringVar(&kind, "type", "", "`container` or image (default: whichever it is)")
	return cmd
}

func inspectOne(ctx context.Context, c *client.Client, ref, kind string) (any, error) {
	if kind != "" && kind != "container" && kind != "image" {
		return nil, errs.New(errs.InvalidArgument, "--type %s: there are container and image", kind)
	}
	if kind != "image" {
		k, err := Find(ctx, c, ref)
		if err == nil {
			return inspectContainer(ctx, c, k)
		}
		if kind == "container" || !errs.Is(err, errs.NotFound) {
			return nil, err
		}
	}
	im, err := image.Find(ctx, c, ref)
	if errs.Is(err, errs.NotFound) && kind == "" {
		return nil, errs.New(errs.NotFound, "no such container or image: %s", ref)
	}
	if err != nil {
		return nil, err
	}
	return inspectImage(ctx, c, im)
}

func inspectContainer(ctx context.Context, c *client.Client, k *containersapi.Container) (*containerInfo, error) {
	p, err := TaskOf(ctx, c, k.GetID())
	if err != nil {
		return nil, err
	}
	l, s := k.GetLabels(), specOf(k)
	state, _ := stateOf(p, time.Now())
	out := &containerInfo{
		ID: k.GetID(), Name: client.DisplayName(k), Created: k.GetCreatedAt().AsTime(), Image: k.GetImage(), Platform: l[client.LabelPlatform],
		Runtime: k.GetRuntime().GetName(), Snapshotter: k.GetSnapshotter(), SnapshotKey: k.GetSnapshotKey(), LogPath: logPath(k),
		AttachStdin: l[client.LabelStdin] != "", Labels: l, Spec: s,
		State: stateInfo{Status: state, Running: IsUp(p), Paused: state == "paused", Pid: p.GetPid(), ExitCode: p.GetExitStatus()},
		Config: configInfo{
			Hostname: s.Hostname, User: fmt.Sprintf("%d:%d", s.Process.User.UID, s.Process.User.GID), Tty: s.Process.Terminal, OpenStdin: l[client.LabelStdin] != "",
			Env: s.Process.Env, Cmd: s.Process.Args, Image: image.Familiar(k.GetImage()), WorkingDir: s.Process.Cwd, StopSignal: l[client.LabelStopSignal], Labels: ownLabels(l),
		},
		HostConfig:      hostInfo{NetworkMode: l[client.LabelNetwork], RestartPolicy: l[client.LabelRestartPolicy], AutoRemove: l[client.LabelAutoRemove] == "true"},
		NetworkSettings: networkInfo{Networks: l[client.LabelNetwork], IPAddress: addressOf(k), Ports: portsText(l[client.LabelPorts]), Pod: l[client.LabelPod]},
	}
	if len(s.Process.Args) > 0 {
		out.Path, out.Args = s.Process.Args[0], s.Process.Args[1:]
	}
	if s.Root != nil {
		out.HostConfig.ReadonlyRootfs = s.Root.Readonly
	}
	if s.Linux != nil {
		out.HostConfig.Resources = s.Linux.Resources
	}
	if t, ok := startTime(p.GetPid()); ok && IsUp(p) {
		out.State.StartedAt = t.UTC().Format(time.RFC3339Nano)
	}
	if state == "exited" {
		out.State.FinishedAt = p.GetExitedAt().AsTime().Format(time.RFC3339Nano)
	}
	for _, m := range s.Mounts {
		if m.Type == "bind" && !strings.HasPrefix(m.Source, l[client.LabelDir]+"/") {
			out.Mounts = append(out.Mounts, mountInfo{m.Type, m.Source, m.Destination, m.Options})
		}
	}
	if im, err := c.Images().Get(ctx, &imagesapi.GetImageRequest{Name: k.GetImage()}); err == nil {
		out.ImageDigest = im.GetImage().GetTarget().GetDigest()
	}
	return out, nil
}

func inspectImage(ctx context.Context, c *client.Client, im *imagesapi.Image) (*imageInfo, error) {
	full, err := image.OpenAny(ctx, c, im)
	if err != nil {
		return nil, err
	}
	return &imageInfo{
		ID: im.GetTarget().GetDigest(), Name: im.GetName(), MediaType: im.GetTarget().GetMediaType(), Created: full.Spec.Created,
		Architecture: full.Spec.Architecture, Os: full.Spec.OS, Platform: platforms.Format(full.Spec.Platform), Size: full.Size(),
		Config: full.Spec.Config, RootFS: full.Spec.RootFS, Manifest: full.Manifest, Layers: full.Layers, Labels: im.GetLabels(),
	}, nil
}
