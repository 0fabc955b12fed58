package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	ttrpcapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/berthd/berth/daemon/config"
	"github.com/berthd/berth/server/containerd"
)

// maxMessage is the largest message either way, in bytes: containerd's default.
const maxMessage = 16 << 20

// stopTime is how long requests may go on after the daemon was told to stop.
const stopTime = 10 * time.Second

// Run is the daemon: it returns when ctx ends and everything is put down, or when
// it cannot start. Containers and their shims live on.
func Run(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	start := time.Now()
	p, err := wire(ctx, cfg, log)
	if err != nil {
		return err
	}
	api := p.register()
	shims, err := p.shimServer()
	if err != nil {
		return errors.Join(err, p.close())
	}
	l, err := listen(cfg.GRPC.Address)
	if err != nil {
		return errors.Join(err, p.close())
	}
	tl, err := listen(cfg.GRPC.Address + ".ttrpc")
	if err != nil {
		return errors.Join(err, l.Close(), p.close())
	}
	if err := p.tasks.Adopt(ctx); err != nil {
		return errors.Join(err, l.Close(), tl.Close(), p.close())
	}
	run, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	serve := func(what string, fn func() error) {
		wg.Add(1)
		// owner: Run waits for it below.
		go func() {
			defer wg.Done()
			if err := fn(); err != nil {
				cancel(fmt.Errorf("%s: %w", what, err))
			}
		}()
	}
	serve("serve "+cfg.GRPC.Address, func() error { return api.Serve(l) })
	serve("serve "+cfg.GRPC.Address+".ttrpc", func() error { return ignoreClosed(shims.Serve(run, tl)) })
	serve("collect garbage", func() error { return p.collect.Run(run) })
	log.Info("ready", "version", Version, "address", cfg.GRPC.Address, "root", cfg.Root, "elapsed", time.Since(start).Round(time.Microsecond))
	notify("READY=1")

	<-run.Done()
	notify("STOPPING=1")
	stopAPI(api)
	err = shims.Close()
	wg.Wait()
	err = errors.Join(err, p.close())
	if cause := context.Cause(run); !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}

// stopAPI lets requests end, for a while; streams that never end by themselves
// are cut.
func stopAPI(s *grpc.Server) {
	t := time.AfterFunc(stopTime, s.Stop)
	defer t.Stop()
	s.GracefulStop()
}

func ignoreClosed(err error) error {
	if errors.Is(err, ttrpc.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *parts) register() *grpc.Server {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(containerd.UnaryErrors), grpc.ChainStreamInterceptor(containerd.StreamErrors))
	namespacesapi.RegisterNamespacesServer(s, containerd.Namespaces{Store: p.store})
	imagesapi.RegisterImagesServer(s, containerd.Images{Store: p.store, GC: p.collect})
	contentapi.RegisterContentServer(s, containerd.Content{Store: p.store, GC: p.collect})
	leasesapi.RegisterLeasesServer(s, containerd.Leases{Store: p.store, GC: p.collect})
	containersapi.RegisterContainersServer(s, containerd.Containers{Store: p.store, GC: p.collect})
	snapshotsapi.RegisterSnapshotsServer(s, containerd.Snapshots{Store: p.store, GC: p.collect})
	tasksapi.RegisterTasksServer(s, containerd.Tasks{Store: p.store, Tasks: p.tasks})
	eventsapi.RegisterEventsServer(s, containerd.Events{Exchange: p.exchange})
	introspectionapi.RegisterIntrospectionServer(s, containerd.Introspection{UUID: p.uuid, Parts: p.plugins})
	versionapi.RegisterVersionServer(s, containerd.Version{Text: Version, Revision: Revision})
	diffapi.RegisterDiffServer(s, containerd.Diff{Store: p.store, Images: p.images})
	streams := containerd.NewStreams()
	streamingapi.RegisterStreamingServer(s, streams)
	transferapi.RegisterTransferServer(s, containerd.Transfer{Store: p.store, Images: p.images, Streams: streams})
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	return s
}

// shimServer takes the events of shims. Only processes of our own user may send.
func (p *parts) shimServer() (*ttrpc.Server, error) {
	s, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return nil, err
	}
	ttrpcapi.RegisterTTRPCEventsService(s, containerd.ShimEvents{Exchange: p.exchange})
	return s, nil
}

// listen makes a socket that only root may use. A socket file that nobody serves
// is left by a dead daemon and replaced; the root's lock has shown that none lives.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: another daemon serves it; give this one its own --address", path), c.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// notify tells systemd how far the daemon is (sd_notify(3)).
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if c, err := net.Dial("unixgram", path); err == nil {
		_, _ = c.Write([]byte(state)) // nobody to tell if systemd does not listen
		_ = c.Close()
	}
}
