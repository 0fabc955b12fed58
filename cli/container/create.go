package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/opencontainers/image-spec/identity"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/image"
	"github.com/berthd/berth/cli/rootfs"
	"github.com/berthd/berth/cli/spec"
)

// createFlags are those of create and run.
type createFlags struct {
	spec.Flags
	name, pull, platform, runtime, snapshotter string
	labels, labelFiles                         []string
	restart, stopSignal, network               string
	stopTimeout                                int
	logOpts                                    []string
	logDriver                                  string
	interactive, remove, quiet                 bool
	cidfile                                    string
	addHosts, dns, dnsSearch, dnsOpts          []string
	ports                                      []string
	registry                                   image.RegistryFlags
	detached                                   bool // run -d
}

func (x *createFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the image is the container's
	x.Flags.Add(f)
	f.StringVar(&x.name, "name", "", "`name` to call it by (default: one is made up)")
	f.StringVar(&x.pull, "pull", "missing", "`WHEN` to get the image: always, missing or never")
	f.StringVar(&x.platform, "platform", "", "`os/arch[/variant]` of the image")
	f.StringVar(&x.runtime, "runtime", defaultRuntime, "runtime `type`, as io.containerd.runsc.v1, or the path of a runc-like program")
	f.StringVar(&x.snapshotter, "snapshotter", "", "`name` of the snapshotter (default: the daemon's)")
	f.StringArrayVarP(&x.labels, "label", "l", nil, "label `KEY=VALUE`")
	f.StringArrayVar(&x.labelFiles, "label-file", nil, "`file` of labels, one a line")
	f.StringVar(&x.restart, "restart", "no", "`WHEN` to start it again: no, always, unless-stopped or on-failure[:N]")
	f.StringVar(&x.stopSignal, "stop-signal", "", "`signal` that stop sends (default: the image's, or SIGTERM)")
	f.IntVar(&x.stopTimeout, "stop-timeout", defaultStopTime, "`seconds` that stop waits before it kills")
	f.StringVar(&x.network, "network", "", "`name` of a network (several with commas), host, none or container:NAME (default: the first network, or none if there is none)")
	f.StringArrayVarP(&x.ports, "publish", "p", nil, "`MAPPING` [[IP:]HOSTPORT:]PORT[/udp]: reach PORT of the container at HOSTPORT of this machine")
	f.StringArrayVar(&x.logOpts, "log-opt", nil, "`OPTION`: max-size=SIZE and max-file=N bound the log (default with -d: 50m and 3; else no bound)")
	f.StringVar(&x.logDriver, "log-driver", "json-file", "`driver`: json-file keeps a log for `berth logs`, none keeps nothing")
	f.BoolVarP(&x.interactive, "interactive", "i", false, "keep stdin open")
	f.BoolVar(&x.remove, "rm", false, "remove it when it has ended")
	f.StringVar(&x.cidfile, "cidfile", "", "write the id into this `file`")
	f.StringArrayVar(&x.addHosts, "add-host", nil, "line `NAME:IP` for /etc/hosts")
	f.StringSliceVar(&x.dns, "dns", nil, "`address` of a name server")
	f.StringSliceVar(&x.dnsSearch, "dns-search", nil, "`domain` to search names in")
	f.StringSliceVar(&x.dnsOpts, "dns-option", nil, "`option` for resolv.conf")
	f.BoolVarP(&x.quiet, "quiet", "q", false, "show no progress of a pull")
	f.BoolVar(&x.registry.PlainHTTP, "plain-http", false, "pull by http, without TLS")
	f.StringVar(&x.registry.HostsDir, "hosts-dir", "", "`directory` with hosts.toml files for a pull")
}

const (
	defaultRuntime  = "io.containerd.runc.v2"
	defaultStopTime = 10 // seconds
	leaseTime       = time.Hour
)

// creation is one container on its way.
type creation struct {
	*app
	c      *client.Client // under a lease
	x      *createFlags
	places client.Places
	id     string
	name   string
	dir    string
	image  client.Image
	labels map[string]string
	net    network
}

// create makes a container that is ready to be started. What it has made goes away
// again if it fails.
func (a *app) create(ctx context.Context, c *client.Client, x *createFlags, ref string, args []string) (_ *containersapi.Container, err error) {
	k := &creation{app: a, x: x, id: id.New(32)}
	if err := k.check(); err != nil {
		return nil, err
	}
	if k.places, err = c.Places(ctx); err != nil {
		return nil, err
	}
	done, err := k.lease(ctx, c)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := k.claimName(ctx); err != nil {
		return nil, err
	}
	if k.image, err = k.getImage(ctx, ref); err != nil {
		return nil, err
	}
	k.dir = k.places.Dir(k.id)
	out, err := k.make(ctx, args)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		return nil, errors.Join(err, k.undo(clean))
	}
	if x.cidfile != "" {
		return out, writeNew(x.cidfile, k.id)
	}
	return out, nil
}

// cleanTime bounds the taking back of a creation that failed.
const cleanTime = 30 * time.Second

func writeNew(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func (k *creation) check() error {
	x := k.x
	if x.remove && x.restart != "no" && x.restart != "" {
		return errs.New(errs.InvalidArgument, "--rm and --restart exclude each other")
	}
	if !slices.Contains([]string{"always", "missing", "never"}, x.pull) {
		return errs.New(errs.InvalidArgument, "--pull %s: there are always, missing and never", x.pull)
	}
	if _, _, err := restartRule(x.restart); err != nil {
		return err
	}
	if x.stopSignal != "" {
		if _, err := ParseSignal(x.stopSignal); err != nil {
			return err
		}
	}
	if x.name != "" {
		if err := id.Check("container name", x.name); err != nil {
			return err
		}
	}
	k.name = x.name
	_, err := x.logAddress("/")
	return err
}

// lease holds what is made until the container's row does.
func (k *creation) lease(ctx context.Context, c *client.Client) (func(), error) {
	name := "berth-create-" + k.id[:16]
	_, err := c.Leases().Create(ctx, &leasesapi.CreateRequest{ID: name, Labels: map[string]string{"containerd.io/gc.expire": time.Now().Add(leaseTime).UTC().Format(time.RFC3339)}})
	if err != nil {
		return nil, err
	}
	k.c = c.Under(name)
	return func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		if _, err := c.Leases().Delete(clean, &leasesapi.DeleteRequest{ID: name}); err != nil {
			k.Debugf("lease %s: %v; it ends by itself", name, err)
		}
	}, nil
}

// claimName refuses a name that is taken, and makes one up where none is given.
func (k *creation) claimName(ctx context.Context) error {
	if k.name == "" {
		k.name = madeUpName()
		return nil
	}
	taken, err := matchContainers(ctx, k.c, k.name)
	if err != nil {
		return err
	}
	for _, t := range taken {
		if client.DisplayName(t) == k.name || t.GetID() == k.name {
			return errs.New(errs.AlreadyExists, "the name %q is taken by container %s: remove that with `berth rm %s`, or use another name", k.name, client.ShortID(t.GetID()), k.name)
		}
	}
	return nil
}

// getImage finds the image, and pulls it if it is not here.
func (k *creation) getImage(ctx context.Context, ref string) (client.Image, error) {
	x := k.x
	if x.pull != "always" {
		im, err := image.Find(ctx, k.c, ref)
		var open client.Image
		if err == nil {
			open, err = k.c.Open(ctx, im, x.platform)
		}
		if err == nil || !errs.Is(err, errs.NotFound) || x.pull == "never" {
			return open, err
		}
	}
	full, err := image.FullName(ref)
	if err != nil {
		return client.Image{}, err
	}
	r := x.registry
	r.Quiet = x.quiet
	if x.platform != "" {
		r.Platforms = []string{x.platform}
	}
	if !r.Quiet {
		fmt.Fprintf(k.Err, "Getting image %s\n", full)
	}
	if err := image.Pull(ctx, k.App, k.c, full, r); err != nil {
		return client.Image{}, err
	}
	im, err := k.c.Images().Get(ctx, &imagesapi.GetImageRequest{Name: full})
	if err != nil {
		return client.Image{}, err
	}
	return k.c.Open(ctx, im.GetImage(), x.platform)
}

// make makes directory, network, snapshot and row, in this order.
func (k *creation) make(ctx context.Context, args []string) (*containersapi.Container, error) {
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of container %s: %w", k.name, err)
	}
	mounts, err := k.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.connect(ctx); err != nil {
		return nil, err
	}
	s, err := k.spec(ctx, mounts, args)
	if err != nil {
		return nil, err
	}
	if err := k.fillLabels(s); err != nil {
		return nil, err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	runtime, err := k.runtime()
	if err != nil {
		return nil, err
	}
	r, err := k.c.Containers().Create(ctx, &containersapi.CreateContainerRequest{Container: &containersapi.Container{
		ID: k.id, Labels: k.labels, Image: k.image.GetName(), Runtime: runtime, Snapshotter: k.snapshotter(), SnapshotKey: k.id,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: data},
	}})
	if err != nil {
		return nil, err
	}
	return r.GetContainer(), k.wonName(ctx, r.GetContainer())
}

// wonName looks whether somebody else has taken the name meanwhile: the older
// container keeps it.
func (k *creation) wonName(ctx context.Context, own *containersapi.Container) error {
	if k.x.name == "" {
		return nil
	}
	all, err := matchContainers(ctx, k.c, k.name)
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.GetID() == own.GetID() || client.DisplayName(o) != k.name {
			continue
		}
		mine, his := own.GetCreatedAt().AsTime(), o.GetCreatedAt().AsTime()
		if his.Before(mine) || his.Equal(mine) && o.GetID() < own.GetID() {
			return errs.New(errs.AlreadyExists, "the name %q has been taken by container %s", k.name, client.ShortID(o.GetID()))
		}
	}
	return nil
}

// undo removes what make has made, of which some may be missing.
func (k *creation) undo(ctx context.Context) error {
	_, err1 := k.c.Containers().Delete(ctx, &containersapi.DeleteContainerRequest{ID: k.id})
	_, err2 := k.c.Snapshots().Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: k.snapshotter(), Key: k.id})
	return errors.Join(errs.Ignore(err1, errs.NotFound), errs.Ignore(err2, errs.NotFound), k.net.remove(ctx, k.c), os.RemoveAll(k.dir))
}

func (k *creation) snapshotter() string {
	if k.x.snapshotter != "" {
		return k.x.snapshotter
	}
	return DefaultSnapshotter
}

const DefaultSnapshotter = "overlayfs"

// snapshot makes the container's writable layer over the image, which is unpacked
// before if it is not.
func (k *creation) snapshot(ctx context.Context) ([]*types.Mount, error) {
	r := &snapshotsapi.PrepareSnapshotRequest{Snapshotter: k.snapshotter(), Key: k.id, Parent: k.image.ChainID()}
	p, err := k.c.Snapshots().Prepare(ctx, r)
	if errs.Is(err, errs.NotFound) {
		if err := unpackImage(ctx, k.c, k.image, k.snapshotter()); err != nil {
			return nil, err
		}
		p, err = k.c.Snapshots().Prepare(ctx, r)
	}
	if err != nil {
		return nil, fmt.Errorf("root file system of container %s: %w", k.name, err)
	}
	return p.GetMounts(), nil
}

func (k *creation) spec(ctx context.Context, mounts []*types.Mount, args []string) (*rspec.Spec, error) {
	text := k.x.User
	if text == "" {
		text = k.image.Spec.Config.User
	}
	user, home, err := rootfs.User(text, k.x.GroupAdd, func(name string) ([]byte, error) { return rootfs.ReadFile(mounts, name) })
	if err != nil {
		return nil, err
	}
	files, err := k.files()
	if err != nil {
		return nil, err
	}
	join, err := k.joins(ctx)
	if err != nil {
		return nil, err
	}
	return k.x.Build(spec.Facts{
		ID: k.id, Namespace: k.c.Namespace, Image: k.image.Spec.Config, Args: args, User: user, Home: home, Network: k.net.namespace,
		Files: files, Join: join, Getenv: os.LookupEnv, MakeDir: func(dir string) error { return os.MkdirAll(dir, 0o755) },
		Volume: func(name, at string) (string, error) { return k.volume(name, at, mounts) },
	})
}

// joins finds the namespaces of --pid and --ipc container:NAME.
func (k *creation) joins(ctx context.Context) (map[string]string, error) {
	out := map[string]string{}
	for kind, mode := range map[string]string{"pid": k.x.PID, "ipc": k.x.IPC} {
		ref, ok := strings.CutPrefix(mode, "container:")
		if !ok {
			continue
		}
		other, err := Find(ctx, k.c, ref)
		if err != nil {
			return nil, err
		}
		p, err := running(ctx, k.c, other)
		if err != nil {
			return nil, err
		}
		out[kind] = fmt.Sprintf("/proc/%d/ns/%s", p.GetPid(), kind)
	}
	return out, nil
}

// runtime is the runtime's type, or our own with another program.
func (k *creation) runtime() (*containersapi.Container_Runtime, error) {
	name := k.x.runtime
	if !strings.Contains(name, "/") && strings.Contains(name, ".") {
		return &containersapi.Container_Runtime{Name: name}, nil
	}
	o, err := proto.Marshal(&runcoptions.Options{BinaryName: name})
	return &containersapi.Container_Runtime{Name: defaultRuntime, Options: &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: o}}, err
}

// restartRule reads --restart.
func restartRule(s string) (policy, count string, err error) {
	policy, count, counted := strings.Cut(s, ":")
	if counted && policy == "on-failure" {
		if _, err := strconv.ParseUint(count, 10, 16); err == nil {
			return policy, count, nil
		}
	}
	if !counted && slices.Contains([]string{"", "no", "always", "unless-stopped", "on-failure"}, policy) {
		return policy, "", nil
	}
	return "", "", errs.New(errs.InvalidArgument, "--restart %q: there are no, always, unless-stopped and on-failure[:N]", s)
}

// logAddress is where the shim writes the container's output.
func (x *createFlags) logAddress(dir string) (string, error) {
	size, files := "", "3"
	if x.detached {
		size = "50m"
	}
	for _, o := range x.logOpts {
		key, v, _ := strings.Cut(o, "=")
		switch key {
		case "max-size":
			n, err := spec.Bytes(v)
			if err != nil || n < 4096 {
				return "", errs.New(errs.InvalidArgument, "--log-opt %s: use a size from 4k, as 10m", o)
			}
			size = strconv.FormatInt(n, 10)
		case "max-file":
			if n, err := strconv.Atoi(v); err != nil || n < 1 || n > 1000 {
				return "", errs.New(errs.InvalidArgument, "--log-opt %s: use a number from 1", o)
			}
			files = v
		default:
			return "", errs.New(errs.InvalidArgument, "--log-opt %s is not known; there are max-size and max-file", o)
		}
	}
	if x.logDriver != "json-file" && x.logDriver != "none" {
		return "", errs.New(errs.InvalidArgument, "--log-driver %s: there are json-file and none", x.logDriver)
	}
	if x.logDriver == "none" { // who is attached still gets all of it
		return "log:?max-line=" + strconv.Itoa(maxLogLine), nil
	}
	address := "log://" + filepath.Join(dir, logName) + "?max-line=" + strconv.Itoa(maxLogLine)
	if size != "" {
		address += "&max-size=" + size + "&max-files=" + files
	}
	return address, nil
}

const (
	logName    = "log"
	maxLogLine = 64 << 10
)

func (k *creation) fillLabels(s *rspec.Spec) error {
	own, err := spec.Pairs("label", k.x.labels)
	if err != nil {
		return err
	}
	k.labels = map[string]string{}
	for l, v := range k.image.Spec.Config.Labels {
		if len(l)+len(v) <= 4096 {
			k.labels[l] = v
		}
	}
	for _, file := range k.x.labelFiles {
		lines, err := spec.Lines(file)
		if err != nil {
			return err
		}
		more, err := spec.Pairs("label", lines)
		if err != nil {
			return err
		}
		for l, v := range more {
			k.labels[l] = v
		}
	}
	for l, v := range own {
		k.labels[l] = v
	}
	log, err := k.x.logAddress(k.dir)
	if err != nil {
		return err
	}
	set := func(key, value string) {
		if value != "" {
			k.labels[key] = value
		}
	}
	set(client.LabelName, k.name)
	set(client.LabelDir, k.dir)
	set(client.LabelLog, log)
	if k.x.interactive {
		set(client.LabelStdin, stdinAddress(k.x.detached || s.Process.Terminal))
	}
	if k.x.remove && k.x.detached {
		set(client.LabelAutoRemove, "true")
	}
	set(client.LabelPlatform, k.x.platform)
	stop := k.x.stopSignal
	if stop == "" {
		stop = k.image.Spec.Config.StopSignal
	}
	set(client.LabelStopSignal, stop)
	if k.x.stopTimeout != defaultStopTime {
		set(client.LabelStopTime, strconv.Itoa(k.x.stopTimeout))
	}
	for l, v := range k.net.labels() {
		set(l, v)
	}
	if policy, count, _ := restartRule(k.x.restart); policy != "" && policy != "no" {
		set(client.LabelRestartPolicy, k.x.restart)
		set(client.LabelRestartCount, map[bool]string{true: "0"}[count != ""])
		set(client.LabelRestartLog, log)
	}
	return nil
}

// stdinAddress is where the shim takes stdin from. Without a terminal and with a
// client that waits, its leaving is the end of stdin.
func stdinAddress(stays bool) string {
	if stays {
		return "attach:"
	}
	return "attach:?once=1"
}

// unpackImage fills the snapshots of an image that are not there.
func unpackImage(ctx context.Context, c *client.Client, im client.Image, sn string) error {
	ids := im.Spec.RootFS.DiffIDs
	if len(ids) != len(im.Layers) {
		return errs.New(errs.InvalidArgument, "image %s has %d layers and %d diff ids", im.GetName(), len(im.Layers), len(ids))
	}
	parent := ""
	for i, l := range im.Layers {
		chain := identity.ChainID(ids[:i+1]).String()
		if _, err := c.Snapshots().Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: sn, Key: chain}); err == nil {
			parent = chain
			continue
		} else if !errs.Is(err, errs.NotFound) {
			return err
		}
		if err := unpackLayer(ctx, c, sn, parent, chain, &types.Descriptor{MediaType: l.MediaType, Digest: l.Digest.String(), Size: l.Size}); err != nil {
			return fmt.Errorf("unpack layer %s of %s: %w", l.Digest, im.GetName(), err)
		}
		parent = chain
	}
	return keepSnapshot(ctx, c, im.Config.Digest.String(), sn, parent)
}
