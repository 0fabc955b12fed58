package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	content "github.com/containerd/containerd/api/services/content/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	leases "github.com/containerd/containerd/api/services/leases/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	typesapi "github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// Row is one thing that a daemon knows of.
type Row struct {
	Kind      string // container, task, lease, ingest, snapshot, layer, content, image
	Namespace string
	Name      string
}

func (r Row) String() string {
	return fmt.Sprintf("%s %q in namespace %s", r.Kind, r.Name, r.Namespace)
}

// lasting are the kinds that may stay when a test ends: an image with its content
// and layers is there because somebody pulled it.
var lasting = map[string]bool{"image": true, "content": true, "layer": true}

// Dial connects to the daemon's API.
func (d *Daemon) Dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+d.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// Rows asks the daemon for everything it knows of, by its API.
func (d *Daemon) Rows(ctx context.Context) ([]Row, error) {
	conn, err := d.Dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ns, err := namespaces.NewNamespacesClient(conn).List(ctx, &namespaces.ListNamespacesRequest{})
	if err != nil {
		return nil, err
	}
	var out []Row
	for _, n := range ns.Namespaces {
		rows, err := namespaceRows(metadata.AppendToOutgoingContext(ctx, "containerd-namespace", n.Name), conn, n.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, rows...)
	}
	return out, nil
}

func namespaceRows(ctx context.Context, conn *grpc.ClientConn, ns string) ([]Row, error) {
	var out []Row
	add := func(kind, name string) { out = append(out, Row{kind, ns, name}) }
	c, err := containers.NewContainersClient(conn).List(ctx, &containers.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	for _, x := range c.Containers {
		add("container", x.ID)
	}
	t, err := tasks.NewTasksClient(conn).List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	for _, x := range t.Tasks {
		add("task", x.ID)
	}
	l, err := leases.NewLeasesClient(conn).List(ctx, &leases.ListRequest{})
	if err != nil {
		return nil, err
	}
	for _, x := range l.Leases {
		add("lease", x.ID)
	}
	i, err := content.NewContentClient(conn).ListStatuses(ctx, &content.ListStatusesRequest{})
	if err != nil {
		return nil, err
	}
	for _, x := range i.Statuses {
		add("ingest", x.Ref)
	}
	im, err := images.NewImagesClient(conn).List(ctx, &images.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	for _, x := range im.Images {
		add("image", x.Name)
	}
	blobs, err := content.NewContentClient(conn).List(ctx, &content.ListContentRequest{})
	if err != nil {
		return nil, err
	}
	if err := each(blobs, func(r *content.ListContentResponse) {
		for _, x := range r.Info {
			add("content", x.Digest)
		}
	}); err != nil {
		return nil, err
	}
	for _, sn := range []string{"overlayfs", "native"} {
		s, err := snapshots.NewSnapshotsClient(conn).List(ctx, &snapshots.ListSnapshotsRequest{Snapshotter: sn})
		if err != nil {
			return nil, err
		}
		if err := each(s, func(r *snapshots.ListSnapshotsResponse) {
			for _, x := range r.Info {
				if x.Kind == snapshots.Kind_COMMITTED {
					add("layer", sn+"/"+x.Name)
				} else {
					add("snapshot", sn+"/"+x.Name)
				}
			}
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func each[T any](s interface{ Recv() (*T, error) }, fn func(*T)) error {
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		fn(m)
	}
}

// Left is what a test should not leave in a daemon that goes on: everything but
// images with their content and layers. With all, those too.
func (d *Daemon) Left(all bool) ([]Row, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	end := time.Now().Add(settle)
	for {
		rows, err := d.Rows(ctx)
		if err != nil {
			return nil, err
		}
		var left []Row
		for _, r := range rows {
			if all || !lasting[r.Kind] {
				left = append(left, r)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			return left, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// audit reports at the test's end what its daemon still knows of.
func (d *Daemon) audit(p *Process) {
	select {
	case <-p.Done():
		return
	default:
	}
	left, err := d.Left(false)
	if err != nil {
		d.lab.T.Errorf("ask the daemon what is left: %v", err)
	}
	for _, r := range left {
		d.lab.T.Errorf("left behind in the daemon: %s", r)
	}
}

// learn follows the daemon's events, so that the ledger knows the names of its
// containers. It ends with the daemon.
func (d *Daemon) learn(p *Process) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	d.lab.T.Cleanup(func() { cancel(); <-done })
	// owner: the cleanup above waits for it.
	go func() {
		defer close(done)
		conn, err := d.Dial()
		if err != nil {
			return
		}
		defer conn.Close()
		s, err := eventsapi.NewEventsClient(conn).Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: []string{`topic=="/containers/create"`}})
		if err != nil {
			return
		}
		_ = each(s, func(e *typesapi.Envelope) {
			d.lab.Ledger().Own(told(e.GetNamespace(), containerID(e.GetEvent().GetValue())))
		})
	}()
}

// containerID reads field 1 of a ContainerCreate event.
func containerID(b []byte) string {
	if len(b) < 2 || b[0] != 0x0a || int(b[1]) > len(b)-2 || b[1] > 127 {
		return ""
	}
	return strings.ToValidUTF8(string(b[2:2+int(b[1])]), "")
}

// told is the name by which a container's cgroup is known: a short id is another
// test's too, so its namespace goes with it.
func told(namespace, id string) string {
	if id == "" || len(id) > 12 {
		return id
	}
	return namespace + "/" + id
}
