package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	ttrpcapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/daemon/config"
	"github.com/berthd/berth/server/containerd"
	"github.com/berthd/berth/server/cri"
	"github.com/berthd/berth/server/debug"
)

// stopTime is how long requests may go on after the daemon was told to stop.
const stopTime = 10 * time.Second

// Setup is what Run is given.
type Setup struct {
	Config config.Config
	Load   func() (config.Config, error) // reads the files again, on SIGHUP
	Log    *slog.Logger
	Level  *slog.LevelVar // of Log
}

// Run is the daemon: it returns when ctx ends and everything is put down, or when
// it cannot start. Containers and their shims live on.
func Run(ctx context.Context, s Setup) error {
	start := time.Now()
	cfg, log := s.Config, s.Log
	sd := meetSystemd()
	if err := ourselves(cfg, log); err != nil {
		return err
	}
	p, err := wire(ctx, cfg, log)
	if err != nil {
		return err
	}
	p.systemd = sd
	shims, err := p.shimServer()
	if err != nil {
		return errors.Join(err, p.close())
	}
	open, err := p.sockets()
	if err != nil {
		return errors.Join(err, p.close())
	}
	if err := p.boxes.Adopt(ctx); err != nil {
		return errors.Join(err, open.close(), p.close())
	}
	ends, err := p.recoverPods(ctx)
	if err != nil {
		return errors.Join(err, open.close(), p.close())
	}
	api := p.register(cfg.Plugins.GRPC.MaxRecv, cfg.Plugins.GRPC.MaxSend, nil)
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
	serve("serve "+cfg.Plugins.GRPC.Address, func() error { return api.Serve(open.api) })
	serve("serve "+cfg.TTRPCAddress(), func() error { return ignoreClosed(shims.Serve(run, open.shims)) })
	tcp := api
	if open.tcp != nil {
		tcp = p.register(cfg.Plugins.TCP.MaxRecv, cfg.Plugins.TCP.MaxSend, open.trust)
		serve("serve "+cfg.Plugins.TCP.Address, func() error { return tcp.Serve(open.tcp) })
	}
	if p.streams != nil { // the CRI is not disabled
		serve("serve exec, attach and port-forward", p.streams.Serve)
	}
	if l := open.metrics; l != nil {
		serve("serve metrics", func() error { return serveHTTP(run, l, debug.Metrics(p.debugging())) })
	}
	if l := open.debug; l != nil {
		serve("serve the debug socket", func() error { return serveHTTP(run, l, debug.All(p.debugging())) })
	}
	serve("collect garbage", func() error { return p.collect.Run(run) })
	p.servePods(run, ends, serve)
	if p.keeper != nil {
		serve("keep containers running", func() error { return p.keeper.Run(run) })
	}
	serve("tell systemd", func() error { return p.watchdog(run) })
	serve("reload the configuration", func() error { return p.reloads(run, s) })
	p.rest.worked() // a start is work too
	log.Info("ready", "version", Version, "address", cfg.Plugins.GRPC.Address, "root", cfg.Root, "elapsed", time.Since(start).Round(time.Microsecond))
	p.systemd.tell("READY=1")

	<-run.Done()
	p.systemd.tell("STOPPING=1")
	p.endWaits(errs.New(errs.Unavailable, "the daemon is stopping"))
	stopAPI(api)
	tcp.Stop()
	err = shims.Close()
	if p.streams != nil {
		err = errors.Join(err, p.streams.Close())
	}
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

// register makes a server of all APIs; recv and send bound messages, in bytes.
func (p *parts) register(recv, send int, creds credentials.TransportCredentials) *grpc.Server {
	s := grpc.NewServer(append(p.count(), grpc.MaxRecvMsgSize(recv), grpc.MaxSendMsgSize(send), grpc.Creds(creds),
		grpc.ChainUnaryInterceptor(containerd.UnaryErrors, containerd.UnaryWaits(p.waits), p.rest.unary, cri.Early),
		grpc.ChainStreamInterceptor(containerd.StreamErrors, containerd.StreamWaits(p.waits), p.rest.stream))...)
	namespacesapi.RegisterNamespacesServer(s, containerd.Namespaces{Store: p.store})
	imagesapi.RegisterImagesServer(s, containerd.Images{Store: p.store, GC: p.collect})
	contentapi.RegisterContentServer(s, containerd.Content{Store: p.store, GC: p.collect})
	leasesapi.RegisterLeasesServer(s, containerd.Leases{Store: p.store, GC: p.collect})
	containersapi.RegisterContainersServer(s, containerd.Containers{Store: p.store, GC: p.collect})
	snapshotsapi.RegisterSnapshotsServer(s, containerd.Snapshots{Store: p.store, GC: p.collect})
	tasksapi.RegisterTasksServer(s, containerd.Tasks{Store: p.store, Tasks: p.tasks})
	eventsapi.RegisterEventsServer(s, containerd.Events{Exchange: p.exchange})
	introspectionapi.RegisterIntrospectionServer(s, containerd.Introspection{UUID: p.uuid, Parts: p.plugins, Warnings: p.warnings, Runtime: p.runtimeInfo,
		Extra: map[string]containerd.Extra{"io.containerd.metadata.v1.bolt": p.health}})
	versionapi.RegisterVersionServer(s, containerd.Version{Text: Version, Revision: Revision})
	diffapi.RegisterDiffServer(s, containerd.Diff{Store: p.store, Images: p.images})
	streams := containerd.NewStreams()
	streamingapi.RegisterStreamingServer(s, streams)
	transferapi.RegisterTransferServer(s, containerd.Transfer{Store: p.store, Images: p.images, Streams: streams})
	sandboxapi.RegisterStoreServer(s, containerd.Sandboxes{Store: p.store, GC: p.collect})
	sandboxapi.RegisterControllerServer(s, containerd.Controllers{Store: p.store, Boxes: p.boxes})
	p.registerCRI(s)
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
