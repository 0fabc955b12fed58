package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/label"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/engine/image"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/host/mount"
	"github.com/berthd/berth/host/tree"
	"github.com/berthd/berth/store"
	"github.com/berthd/berth/store/snapshot"
)

// What a container's mounts need, in its directory; all of it follows from the
// config and goes with the container:
//
//	volumes/<n>/   a volume that its image defines, filled from the image
//	images/<n>/    where the image of its n-th mount is mounted
const (
	dirVolumes = "volumes"
	dirImages  = "images"
)

// makeVolumes makes a directory for each volume that the image defines and copies
// into it what the image has there. root is the image, mounted.
func (p *Pods) makeVolumes(ctx context.Context, pod *Pod, c *Container, im image.Entry, root string) (map[string]string, error) {
	userns, err := podspec.UserNamespace(pod.Config)
	if err != nil {
		return nil, err
	}
	if p.cfg.IgnoreVolumes {
		return nil, nil
	}
	uid, gid := mappedRoot(userns)
	out := map[string]string{}
	for n, path := range slices.Sorted(maps.Keys(im.Info.Spec.Config.Volumes)) {
		dir := filepath.Join(p.containerDir(c), dirVolumes, strconv.Itoa(n))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("volume %s: %w", path, err)
		}
		if err := fillVolume(ctx, dir, root, path, uid, gid); err != nil {
			return nil, fmt.Errorf("volume %s: %w", path, err)
		}
		out[path] = dir
	}
	return out, nil
}

func fillVolume(ctx context.Context, dir, root, path string, uid, gid int) error {
	fd, err := openInRoot(root, path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return os.Chown(dir, uid, gid)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd) // only read from
	return tree.Copy(ctx, dir, "/proc/self/fd/"+strconv.Itoa(fd))
}

// openInRoot opens a directory below root as a process with that root would: links
// do not lead out (openat2(2), RESOLVE_IN_ROOT).
func openInRoot(root, path string) (int, error) {
	r, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(r) // only looked at
	fd, err := unix.Openat2(r, path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// mountSources says where the config's mounts really come from: links of the host
// are followed, a directory that is missing is made, images are mounted.
func (p *Pods) mountSources(ctx context.Context, pod *Pod, c *Container) (map[string]string, error) {
	out := map[string]string{}
	for n, m := range c.Config.GetMounts() {
		var err error
		var src string
		if m.GetImage().GetImage() != "" {
			src, err = p.mountImage(ctx, pod, c, n, m)
		} else {
			src, err = hostSource(m.GetHostPath())
		}
		if err != nil {
			return nil, fmt.Errorf("mount at %q: %w", m.GetContainerPath(), err)
		}
		out[m.GetContainerPath()] = src
	}
	return out, nil
}

func hostSource(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", errs.New(errs.InvalidArgument, "host_path %q is not absolute", path)
	}
	src, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", fmt.Errorf("host_path: %w", err)
		}
		src, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("host_path: %w", err)
	}
	return src, nil
}

// imageMountFailed is how a kubelet knows this failure (cri-api, pkg/errors).
const imageMountFailed = "ImageVolumeMountFailed"

// mountImage mounts the image of a container's n-th mount, read-only, and returns
// the path of what is wanted of it.
func (p *Pods) mountImage(ctx context.Context, pod *Pod, c *Container, n int, m *cri.Mount) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("%s: image %s: %w", imageMountFailed, m.GetImage().GetImage(), err)
	}
	if !m.GetReadonly() {
		return fail(errs.New(errs.InvalidArgument, "an image can only be mounted readonly"))
	}
	if m.GetHostPath() != "" {
		return fail(errs.New(errs.InvalidArgument, "host_path must be empty"))
	}
	im, err := p.cfg.Images.Find(ctx, p.scope(c.Namespace), m.GetImage().GetImage())
	if err != nil {
		return fail(err)
	}
	userns, err := podspec.UserNamespace(pod.Config)
	if err != nil {
		return fail(err)
	}
	mounts, err := p.snapshotOf(ctx, pod, c, im, imageSnapshot(c, n), snapshot.View, userns)
	if err != nil {
		return fail(err)
	}
	dir := filepath.Join(p.containerDir(c), dirImages, strconv.Itoa(n))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail(err)
	}
	if err := mount.All(mount.ReadOnly(mounts), dir); err != nil {
		return fail(err)
	}
	if c.Images == nil {
		c.Images = map[string]string{}
	}
	c.Images[m.GetContainerPath()] = im.ID
	sub := m.GetImageSubPath()
	if sub == "" {
		return dir, nil
	}
	fd, err := openInRoot(dir, sub)
	if err != nil {
		return fail(errs.New(errs.InvalidArgument, "image_sub_path %q: %w", sub, err))
	}
	defer unix.Close(fd) // only its name is wanted
	src, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return fail(err)
	}
	return src, nil
}

// imageSnapshot names the snapshot of a container's n-th mount.
func imageSnapshot(c *Container, n int) string { return c.ID + "-mount-" + strconv.Itoa(n) }

// snapshotOf makes a snapshot on top of an image; one that is not unpacked for this
// snapshotter is unpacked now.
func (p *Pods) snapshotOf(ctx context.Context, pod *Pod, c *Container, im image.Entry, name string, kind snapshot.Kind, userns *podspec.Mapping) ([]spec.Mount, error) {
	v := p.leased(c.Namespace, pod.ID)
	s := store.Snapshot{Snapshotter: c.Snapshot, Name: name, Parent: im.Info.ChainID, Kind: kind, Labels: map[string]string{}}
	if userns != nil {
		s.Labels[label.SnapshotUIDMap] = idmap(userns.UIDs())
		s.Labels[label.SnapshotGIDMap] = idmap(userns.GIDs())
	}
	mounts, err := v.MakeSnapshot(ctx, s)
	if errs.Is(err, errs.NotFound) {
		if err := p.cfg.Images.Unpack(ctx, v, im.Names[0], image.HostChoice(), []image.Target{{Snapshotter: c.Snapshot}}, nil); err != nil {
			return nil, err
		}
		mounts, err = v.MakeSnapshot(ctx, s)
	}
	return mounts, err
}

// StatusMounts are the container's mounts as CRI shows them: those asked for, and
// for images which ones they were.
func (c *Container) StatusMounts() []*cri.Mount {
	all := c.Config.GetMounts()
	if len(c.Images) == 0 {
		return all
	}
	out := make([]*cri.Mount, len(all))
	for i, m := range all {
		out[i] = m
		if id := c.Images[m.GetContainerPath()]; id != "" {
			out[i] = proto.CloneOf(m)
			out[i].Image.ImageRef = id
		}
	}
	return out
}
