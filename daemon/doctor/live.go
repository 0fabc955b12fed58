package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	version "github.com/containerd/containerd/api/services/version/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/store"
)

// Health is what the daemon's store has to report; it is the extra answer about the
// part io.containerd.metadata.v1/bolt, as JSON under HealthType.
type Health struct {
	Damage *store.Damage `json:"damage,omitempty"`
	Aside  []store.Aside `json:"aside,omitempty"`
}

// HealthType is the type URL of Health in an Any.
const HealthType = "berth.dev/health+json"

// callTime is how long the daemon may take for one answer.
const callTime = 5 * time.Second

// daemon asks the daemon itself.
func (v *visit) daemon(ctx context.Context) {
	address := v.Config.Config.Plugins.GRPC.Address
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		v.fail("daemon", "", "%s: %v", address, err)
		return
	}
	defer func() { _ = conn.Close() }() // nothing is under way any more
	ctx, cancel := context.WithTimeout(ctx, 4*callTime)
	defer cancel()
	begin := time.Now()
	r, err := version.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		v.fail("daemon", "start it: systemctl start berth, or berth daemon; if it runs elsewhere, give its --address", "%s does not answer: %v", address, err)
		return
	}
	v.ok("daemon", "%s at %s answers within %s", r.GetVersion(), address, time.Since(begin).Round(time.Millisecond))
	v.plugins(ctx, conn)
	v.health(ctx, conn)
	v.tasks(ctx, conn)
	v.conditions(ctx, conn)
}

func (v *visit) plugins(ctx context.Context, conn *grpc.ClientConn) {
	r, err := introspection.NewIntrospectionClient(conn).Plugins(ctx, &introspection.PluginsRequest{})
	if err != nil {
		v.warn("parts", "", "%v", err)
		return
	}
	for _, p := range r.GetPlugins() {
		// What the configuration does not ask for is not missing.
		if e := p.GetInitErr(); e != nil && !strings.Contains(e.GetMessage(), "is configured") && !strings.Contains(e.GetMessage(), "is set") {
			if codes.Code(e.GetCode()) == codes.Unimplemented {
				v.warn("part "+p.GetID(), "", "not there: %s", strings.TrimSuffix(e.GetMessage(), ": skip plugin"))
			} else {
				v.fail("part "+p.GetID(), "", "%s", e.GetMessage())
			}
		}
	}
	v.ok("parts", "%d", len(r.GetPlugins()))
}

func (v *visit) health(ctx context.Context, conn *grpc.ClientConn) {
	const about = "database"
	r, err := introspection.NewIntrospectionClient(conn).PluginInfo(ctx, &introspection.PluginInfoRequest{Type: "io.containerd.metadata.v1", ID: "bolt"})
	if err != nil {
		v.warn(about, "", "%v", err)
		return
	}
	var h Health
	if x := r.GetExtra(); x.GetTypeUrl() != HealthType {
		v.warn(about, "use the doctor of the same version as the daemon", "the daemon does not report on it")
		return
	} else if err := json.Unmarshal(x.GetValue(), &h); err != nil {
		v.warn(about, "", "%v", err)
		return
	}
	const forget = "look at what is missing; then stop the daemon and run `berth doctor --forget`"
	if d := h.Damage; d != nil {
		v.warn(about, forget, "it was damaged and made anew on %s: %v rows were kept, some may be missing in %v; the damaged one is in %s (%s)",
			d.At.Local().Format(time.DateTime), total(d.Kept), d.Cut, d.Copy, d.Error)
	}
	for _, a := range h.Aside {
		v.warn(about, forget, "a row is set aside: %s %q of namespace %q: %s", a.Table, a.ID, a.Namespace, a.Reason)
	}
	if h.Damage == nil && len(h.Aside) == 0 {
		v.ok(about, "whole, no row is set aside")
	}
}

func total(m map[string]int) (n int) {
	for _, k := range m {
		n += k
	}
	return n
}

// tasks finds shims that do not answer: the daemon shows their containers as unknown.
func (v *visit) tasks(ctx context.Context, conn *grpc.ClientConn) {
	r, err := namespaces.NewNamespacesClient(conn).List(ctx, &namespaces.ListNamespacesRequest{})
	if err != nil {
		v.warn("shims", "", "%v", err)
		return
	}
	all, hung := 0, 0
	for _, ns := range r.GetNamespaces() {
		ctx := metadata.AppendToOutgoingContext(ctx, "containerd-namespace", ns.GetName())
		l, err := tasks.NewTasksClient(conn).List(ctx, &tasks.ListTasksRequest{})
		if err != nil {
			v.warn("shims", "", "namespace %s: %v", ns.GetName(), err)
			continue
		}
		for _, t := range l.GetTasks() {
			if all++; t.GetStatus() == tasktypes.Status_UNKNOWN {
				hung++
				v.warn("shims", fmt.Sprintf("see what it does: ps -o pid,stat,wchan,args -C berth-shim | grep %s; to give it up, kill it, and the daemon cleans up", t.GetID()),
					"the shim of %s/%s does not answer", ns.GetName(), t.GetID())
			}
		}
	}
	if hung == 0 {
		v.ok("shims", "%d containers, all answer", all)
	}
}

func (v *visit) conditions(ctx context.Context, conn *grpc.ClientConn) {
	if v.Config.Config.Off("io.containerd.grpc.v1.cri") {
		return
	}
	r, err := cri.NewRuntimeServiceClient(conn).Status(ctx, &cri.StatusRequest{})
	if err != nil {
		v.warn("kubernetes", "", "%v", err)
		return
	}
	for _, c := range r.GetStatus().GetConditions() {
		if c.GetStatus() {
			v.ok("kubernetes", "%s", c.GetType())
		} else {
			v.warn("kubernetes", "", "%s is false: %s: %s", c.GetType(), c.GetReason(), c.GetMessage())
		}
	}
}
