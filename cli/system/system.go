// Package system holds the commands about the daemon as a whole: versions, events,
// what nothing uses, and the demonstration.
package system

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sort"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/container"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/table"
)

// app is one call of the program.
type app struct{ *session.App }

// Commands are the verbs of the system.
func Commands(s *session.App) []*cobra.Command {
	a := &app{s}
	return []*cobra.Command{a.versionCommand(), a.infoCommand(), a.eventsCommand(), a.gcCommand(), a.pruneCommand(), a.demoCommand()}
}

// versionInfo is what version prints.
type versionInfo struct {
	Client versionPart
	Server *versionPart
}

type versionPart struct{ Version, Revision, Go, Platform, Address, UUID string }

func (a *app) versionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of this program and of the daemon", Args: session.ExactArgs(0),
		Example: "  berth version\n  berth version --format '{{.Server.Version}}'",
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := versionInfo{Client: versionPart{Version: a.Build.Version, Revision: a.Build.Revision, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}}
		err := a.serverVersion(cmd.Context(), &v)
		if format != "" {
			return errors.Join(a.Objects([]any{v}, format), err)
		}
		fmt.Fprintf(a.Out, "Client:\n  Version:  %s\n  Revision: %s\n  Go:       %s\n  Platform: %s\n", v.Client.Version, v.Client.Revision, v.Client.Go, v.Client.Platform)
		if v.Server != nil {
			fmt.Fprintf(a.Out, "\nServer:\n  Version:  %s\n  Revision: %s\n  Address:  %s\n  UUID:     %s\n", v.Server.Version, v.Server.Revision, v.Server.Address, v.Server.UUID)
		}
		return err
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "json or a Go `template`")
	return cmd
}

func (a *app) serverVersion(ctx context.Context, v *versionInfo) error {
	c, err := a.Daemon(ctx)
	if err != nil {
		return err
	}
	r, err := c.Version().Version(ctx, &emptypb.Empty{})
	if err != nil {
		return err
	}
	s, err := c.Introspection().Server(ctx, &emptypb.Empty{})
	if err != nil {
		return err
	}
	v.Server = &versionPart{Version: r.GetVersion(), Revision: r.GetRevision(), Address: c.Address, UUID: s.GetUUID()}
	return nil
}

// systemInfo is what info prints.
type systemInfo struct {
	Version, Address, UUID, Root, State string
	Pid                                 uint64
	Namespace                           string
	Namespaces                          []string
	Containers, Running, Paused         int
	Images                              int
	Snapshotters, Unavailable           []string
	Kernel, OS, Architecture            string
	CPUs                                int
	Memory                              string
	Cgroups                             string
}

func (a *app) infoCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "info", Short: "Show what the daemon has and can do", Args: session.ExactArgs(0), Example: "  berth info\n  berth info --format json",
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		i, err := a.collectInfo(ctx, c)
		if err != nil {
			return err
		}
		if format != "" {
			return a.Objects([]any{i}, format)
		}
		lines := [][2]string{
			{"Version", i.Version}, {"Address", i.Address}, {"UUID", i.UUID}, {"Process", fmt.Sprint(i.Pid)}, {"Root", i.Root}, {"State", i.State},
			{"Namespace", i.Namespace + " (of " + strings.Join(i.Namespaces, ", ") + ")"},
			{"Containers", fmt.Sprintf("%d (%d running, %d paused)", i.Containers, i.Running, i.Paused)}, {"Images", fmt.Sprint(i.Images)},
			{"Snapshotters", strings.Join(i.Snapshotters, ", ")}, {"Kernel", i.Kernel}, {"OS", i.OS}, {"Architecture", i.Architecture},
			{"CPUs", fmt.Sprint(i.CPUs)}, {"Memory", i.Memory}, {"Cgroups", i.Cgroups},
		}
		for _, l := range lines {
			fmt.Fprintf(a.Out, "%-13s %s\n", l[0]+":", l[1])
		}
		for _, u := range i.Unavailable {
			fmt.Fprintln(a.Out, "Not available:", u)
		}
		return nil
	})
	cmd.Flags().StringVarP(&format, "format", "f", "", "json or a Go `template`")
	return cmd
}

func (a *app) collectInfo(ctx context.Context, c *client.Client) (*systemInfo, error) {
	var v versionInfo
	if err := a.serverVersion(ctx, &v); err != nil {
		return nil, err
	}
	s, err := c.Introspection().Server(ctx, &emptypb.Empty{})
	if err != nil {
		return nil, err
	}
	plugins, err := c.Introspection().Plugins(ctx, &introspectionapi.PluginsRequest{})
	if err != nil {
		return nil, err
	}
	rows, err := container.List(ctx, c, container.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	images, err := c.Images().List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	i := &systemInfo{
		Version: v.Server.Version, Address: c.Address, UUID: s.GetUUID(), Pid: s.GetPid(), Namespace: c.Namespace, Namespaces: append(c.OtherNamespaces(ctx), c.Namespace),
		Containers: len(rows), Images: len(images.GetImages()), Kernel: firstLine("/proc/sys/kernel/osrelease"), OS: osName(), Architecture: runtime.GOARCH,
		CPUs: runtime.NumCPU(), Memory: table.BinarySize(int64(container.MachineMemory())), Cgroups: cgroupsText(),
	}
	sort.Strings(i.Namespaces)
	for _, r := range rows {
		switch r.State {
		case "running":
			i.Running++
		case "paused":
			i.Paused++
		}
	}
	for _, p := range plugins.GetPlugins() {
		if e := p.GetInitErr(); codes.Code(e.GetCode()) == codes.Unimplemented {
			continue // off by the configuration, or not for this machine
		} else if e != nil {
			i.Unavailable = append(i.Unavailable, p.GetType()+"."+p.GetID()+": "+e.GetMessage())
		} else if p.GetType() == "io.containerd.snapshotter.v1" {
			i.Snapshotters = append(i.Snapshotters, p.GetID())
		}
		if p.GetType() == client.TaskPlugin {
			i.Root, i.State = p.GetExports()["root"], p.GetExports()["state"]
		}
	}
	return i, nil
}

func firstLine(name string) string {
	data, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return line
}

func osName() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return runtime.GOOS
}

func cgroupsText() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "v2"
	}
	return "v1"
}

func (a *app) eventsCommand() *cobra.Command {
	var filters []string
	var format string
	var everywhere bool
	cmd := &cobra.Command{
		Use: "events [flags]", Short: "Show what happens, as it happens", Args: session.ExactArgs(0), Aliases: []string{"event"},
		Long: `Show events of the namespace, or with -A of all, until interrupted: when, where, what, and the event as
JSON. Filters are the daemon's: topic=="/tasks/exit", topic~=|^/images/|, event.container_id==ID.`,
		Example: "  berth events\n  berth events -A --filter 'topic~=|^/tasks/|'\n  berth events --format json",
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		own := filters
		if !everywhere {
			own = nil
			for _, f := range filters {
				own = append(own, f+",namespace=="+c.Namespace)
			}
			if len(filters) == 0 {
				own = []string{"namespace==" + c.Namespace}
			}
		}
		s, err := c.Events().Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: own})
		if err != nil {
			return err
		}
		for {
			e, err := s.Recv()
			if ctx.Err() != nil || errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := a.printEvent(e, format); err != nil {
				return err
			}
		}
	})
	f := cmd.Flags()
	f.StringArrayVar(&filters, "filter", nil, "a `filter` of the daemon; several: any of them")
	f.StringVar(&format, "format", "", "json or a Go `template`")
	f.BoolVarP(&everywhere, "all-namespaces", "A", false, "of every namespace")
	return cmd
}

// eventRow is an event as --format sees it.
type eventRow struct {
	Timestamp        time.Time
	Namespace, Topic string
	Event            json.RawMessage
}

func (a *app) printEvent(e *types.Envelope, format string) error {
	r := eventRow{e.GetTimestamp().AsTime(), e.GetNamespace(), e.GetTopic(), json.RawMessage("null")}
	if m, err := e.GetEvent().UnmarshalNew(); err == nil {
		if b, err := (protojson.MarshalOptions{UseProtoNames: true}).Marshal(m); err == nil {
			var flat bytes.Buffer // protojson varies its blanks on purpose
			if json.Compact(&flat, b) == nil {
				r.Event = flat.Bytes()
			}
		}
	}
	if format != "" {
		return table.Write(a.Out, []eventRow{r}, format, nil)
	}
	_, err := fmt.Fprintf(a.Out, "%s %s %s %s\n", r.Timestamp.Local().Format("2006-01-02 15:04:05.000000000 -0700 MST"), r.Namespace, r.Topic, r.Event)
	return err
}

func (a *app) gcCommand() *cobra.Command {
	return &cobra.Command{
		Use: "gc", Short: "Delete what nothing uses any more, now",
		Long: `Have the daemon delete content and snapshots that no image, container or lease uses, and wait for it.
It does so by itself a moment after something was removed. Files of containers that other programs have removed go, too.`,
		Example: "  berth gc", Args: session.ExactArgs(0),
		RunE: a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
			// The API has no word for it, but the end of a lease can be waited for.
			name := "berth-gc-" + id.New(8)
			if _, err := c.Leases().Create(ctx, &leasesapi.CreateRequest{ID: name}); err != nil {
				return err
			}
			if _, err := c.Leases().Delete(ctx, &leasesapi.DeleteRequest{ID: name, Sync: true}); err != nil {
				return err
			}
			return a.sweepDirs(ctx, c)
		}),
	}
}

// youngTime is how old a directory without a container must be to be removed: a
// container on its way has one before it has its row.
const youngTime = time.Hour

// sweepDirs removes the directories of containers that are gone.
func (a *app) sweepDirs(ctx context.Context, c *client.Client) error {
	pl, err := c.Places(ctx)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(pl.Dir(""))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var all []error
	for _, e := range entries {
		if st, err := e.Info(); err != nil || time.Since(st.ModTime()) < youngTime || known(ctx, c, e.Name()) {
			continue
		}
		all = append(all, os.RemoveAll(pl.Dir(e.Name())))
	}
	return errors.Join(all...)
}

// known reports whether any namespace has the container or its task; what cannot be
// asked counts as known.
func known(ctx context.Context, c *client.Client, id string) bool {
	for _, ns := range append(c.OtherNamespaces(ctx), c.Namespace) {
		in := c.In(ns)
		_, err1 := in.Containers().Get(ctx, &containersapi.GetContainerRequest{ID: id})
		_, err2 := in.Tasks().Get(ctx, &tasksapi.GetRequest{ContainerID: id})
		if !errs.Is(err1, errs.NotFound) || !errs.Is(err2, errs.NotFound) {
			return true
		}
	}
	return false
}
