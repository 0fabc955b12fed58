package cri

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/engine/image"
)

// ListImages lists the images that this machine can run.
func (s Images) ListImages(ctx context.Context, r *api.ListImagesRequest) (*api.ListImagesResponse, error) {
	all, err := s.Images.Select(ctx, s.scope(ctx), r.GetFilter().GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	return &api.ListImagesResponse{Images: toImages(all)}, nil
}

// StreamImages is ListImages for any number of images.
func (s Images) StreamImages(r *api.StreamImagesRequest, out api.ImageService_StreamImagesServer) error {
	all, err := s.Images.Select(out.Context(), s.scope(out.Context()), r.GetFilter().GetImage().GetImage())
	if err != nil {
		return err
	}
	return inBatches(toImages(all), func(some []*api.Image) error { return out.Send(&api.StreamImagesResponse{Images: some}) })
}

// ImageStatus tells of one image; one that is not there is no error.
func (s Images) ImageStatus(ctx context.Context, r *api.ImageStatusRequest) (*api.ImageStatusResponse, error) {
	if r.GetImage().GetImage() == "" {
		return nil, errs.New(errs.InvalidArgument, "image status: no image is named")
	}
	e, ok, err := s.Images.Lookup(ctx, s.scope(ctx), r.GetImage().GetImage())
	if err != nil || !ok {
		return &api.ImageStatusResponse{}, err
	}
	out := &api.ImageStatusResponse{Image: toImage(e)}
	if r.GetVerbose() {
		out.Info, err = imageInfo(e)
	}
	return out, err
}

// PullImage brings an image in and returns its id.
func (s Images) PullImage(ctx context.Context, r *api.PullImageRequest) (*api.PullImageResponse, error) {
	c, err := credential(r.GetAuth())
	if err != nil {
		return nil, err
	}
	e, err := s.Images.PullForNode(ctx, s.scope(ctx), image.NodePull{
		Ref: r.GetImage().GetImage(), Snapshotter: s.Snapshotter(handlerOf(r)), Credential: c, Server: r.GetAuth().GetServerAddress(), Idle: s.PullIdle,
		Pinned: s.Pinned,
	})
	if err != nil {
		return nil, err
	}
	return &api.PullImageResponse{ImageRef: e.ID}, nil
}

// handlerOf is the runtime handler whose snapshotter the image is wanted for.
func handlerOf(r *api.PullImageRequest) string {
	if h := r.GetImage().GetRuntimeHandler(); h != "" {
		return h
	}
	return r.GetSandboxConfig().GetAnnotations()["io.containerd.cri.runtime-handler"]
}

// RemoveImage takes an image away with all its names; one that is not there is no
// error.
func (s Images) RemoveImage(ctx context.Context, r *api.RemoveImageRequest) (*api.RemoveImageResponse, error) {
	if err := s.Images.RemoveForNode(ctx, s.scope(ctx), r.GetImage().GetImage()); err != nil {
		return nil, err
	}
	return &api.RemoveImageResponse{}, nil
}

// ImageFsInfo tells how much of the disk images and containers take.
func (s Images) ImageFsInfo(ctx context.Context, _ *api.ImageFsInfoRequest) (*api.ImageFsInfoResponse, error) {
	all, err := s.Images.Usages(ctx, s.scope(ctx))
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixNano()
	out := &api.ImageFsInfoResponse{}
	for _, u := range all {
		fs := &api.FilesystemUsage{
			Timestamp: now, FsId: &api.FilesystemIdentifier{Mountpoint: u.Root}, UsedBytes: &api.UInt64Value{Value: uint64(u.Bytes)},
			InodesUsed: &api.UInt64Value{Value: uint64(u.Inodes)},
		}
		out.ImageFilesystems = append(out.ImageFilesystems, fs)
		out.ContainerFilesystems = append(out.ContainerFilesystems, fs)
	}
	return out, nil
}

func toImages(all []image.Entry) []*api.Image {
	out := make([]*api.Image, 0, len(all))
	for _, e := range all {
		out = append(out, toImage(e))
	}
	return out
}

func toImage(e image.Entry) *api.Image {
	im := &api.Image{
		Id: e.ID, RepoTags: e.Tags, RepoDigests: e.Digests, Size: uint64(e.Info.Size), Pinned: e.Pinned,
		Spec: &api.ImageSpec{Image: e.ID, Annotations: e.Info.Target.Annotations},
	}
	im.Uid, im.Username = imageUser(e.Info.Spec.Config.User)
	return im
}

// imageUser reads an image's user: the part before the colon is a number or a name.
func imageUser(user string) (*api.Int64Value, string) {
	name, _, _ := strings.Cut(user, ":")
	if name == "" {
		return nil, ""
	}
	if n, err := strconv.ParseInt(name, 10, 64); err == nil && n >= 0 && n <= math.MaxUint32 {
		return &api.Int64Value{Value: n}, ""
	}
	return nil, name
}

func imageInfo(e image.Entry) (map[string]string, error) {
	b, err := json.Marshal(struct {
		ChainID   string `json:"chainID"`
		ImageSpec any    `json:"imageSpec"`
	}{e.Info.ChainID, e.Info.Spec})
	return map[string]string{"info": string(b)}, err
}

// credential reads what a kubelet sends: name and password, both in one (auth), or
// a token.
func credential(a *api.AuthConfig) (image.Credential, error) {
	c := image.Credential{
		Username: a.GetUsername(), Secret: a.GetPassword(), IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(), Source: "the pull request",
	}
	if a.GetAuth() != "" && c.Username == "" && c.Secret == "" {
		raw, err := base64.StdEncoding.DecodeString(a.GetAuth())
		if err != nil {
			return c, errs.New(errs.InvalidArgument, "pull image: auth is no base64")
		}
		name, secret, ok := strings.Cut(string(raw), ":")
		if !ok {
			return c, errs.New(errs.InvalidArgument, "pull image: auth holds no name and password")
		}
		c.Username, c.Secret = name, strings.Trim(secret, "\x00")
	}
	return c, nil
}
