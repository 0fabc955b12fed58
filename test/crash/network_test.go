package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/lab"
)

// ofNetworks are the failpoints that a pod without containers comes by.
var ofNetworks = regexp.MustCompile(`^(cni|netns|pod|sandbox)\.`)

// networked is a daemon whose pods have two networks: a bridge with two families,
// masquerading and ports, and a link of their own.
type networked struct {
	*lab.Lab
	t       *testing.T
	d       *lab.Daemon
	network string
}

func newNetworked(t *testing.T) *networked {
	l := lab.New(t)
	l.Bin = lab.BuildWith(t, "failpoint")
	n := &networked{Lab: l, t: t, network: l.Name("net")}
	bridge, ipam, conf := l.Name("br"), filepath.Join(l.Dir, "ipam"), filepath.Join(l.Dir, "cni")
	l.Ledger().Own(bridge)
	l.Ledger().OwnIPAM(filepath.Join(ipam, n.network))
	l.Ledger().OwnIPAM(filepath.Join(ipam, n.network+"2"))
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(conf, "1.conflist"), `{"cniVersion":"1.0.0","name":"`+n.network+`","plugins":[
		{"type":"bridge","bridge":"`+bridge+`","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","dataDir":"`+ipam+`",
		 "ranges":[[{"subnet":"10.103.201.0/24"}],[{"subnet":"fd00:103:201::/64"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`)
	write(filepath.Join(conf, "2.conflist"), `{"cniVersion":"1.0.0","name":"`+n.network+`2","plugins":[
		{"type":"ptp","ipam":{"type":"host-local","dataDir":"`+ipam+`","subnet":"10.103.202.0/24"}}]}`)
	config := filepath.Join(l.Dir, "config.toml")
	write(config, "version = 4\nimports = []\n[plugins.\"io.containerd.cri.v1.runtime\".cni]\nconf_dir = \""+conf+"\"\nmax_conf_num = 0\n[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n")
	n.d = l.Daemon("--config", config)
	t.Cleanup(func() { lab.Run(t, lab.Tool(t, "ip"), "link", "del", bridge) })
	return n
}

// call makes one call of the CRI.
func (n *networked) call(f func(context.Context, cri.RuntimeServiceClient) error) error {
	conn, err := n.d.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return f(ctx, cri.NewRuntimeServiceClient(conn))
}

// life runs, stops and removes a pod, until something fails. With a process, the pod
// shares its PID namespace; without, it is quicker.
func (n *networked) life(process bool) error {
	pid := cri.NamespaceMode_CONTAINER
	if process {
		pid = cri.NamespaceMode_POD
	}
	return n.call(func(ctx context.Context, c cri.RuntimeServiceClient) error {
		up, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: n.network, Namespace: "crash", Uid: "u"}, LogDirectory: filepath.Join(n.Dir, "logs"),
			PortMappings: []*cri.PortMapping{{ContainerPort: 80, HostPort: 18_103}},
			Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: pid}}},
		}}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: up.GetPodSandboxId()}); err != nil {
			return err
		}
		_, err = c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: up.GetPodSandboxId()})
		return err
	})
}

// removeAll takes the pods away that the daemon still knows of.
func (n *networked) removeAll() {
	n.t.Helper()
	err := n.call(func(ctx context.Context, c cri.RuntimeServiceClient) error {
		all, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		for _, p := range all.GetItems() {
			if _, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		n.t.Fatalf("remove the pods: %v\n%s", err, n.d.Log)
	}
}

// nothing checks that no rule, link, address, namespace or mount is left.
func (n *networked) nothing() {
	n.t.Helper()
	lab.Until(n.t, 10*time.Second, "no rule of a pod and no route to it is left", func() bool {
		out := lab.Run(n.t, lab.Tool(n.t, "iptables-save"), "-t", "nat") + lab.Run(n.t, lab.Tool(n.t, "ip6tables-save"), "-t", "nat") + lab.Run(n.t, lab.Tool(n.t, "ip"), "route")
		return !strings.Contains(out, n.network) && !strings.Contains(out, "10.103.202.")
	})
	n.Ledger().Must(n.t)
}

// TestNetworkFailpoints kills the daemon at every failpoint on the way of a pod's
// networks, up and down.
func TestNetworkFailpoints(t *testing.T) {
	n := newNetworked(t)
	if err := n.life(true); err != nil {
		t.Fatalf("%v\n%s", err, n.d.Log)
	}
	for _, point := range points(t) {
		if !ofNetworks.MatchString(point) {
			continue
		}
		process := !strings.HasPrefix(point, "cni.") && !strings.HasPrefix(point, "netns.")
		for hit := 1; hit <= 2; hit++ { // the second time it is another plugin, family or namespace
			n.d.Stop(t)
			n.d.Env = []string{fmt.Sprintf("BERTH_FAILPOINT=%s=kill@%d", point, hit)}
			n.d.Start()
			err := n.life(process)
			n.d.Env = nil
			if err == nil {
				if hit == 1 {
					t.Errorf("failpoint %s is never reached: extend the life that this test leads", point)
				}
				break
			}
			t.Logf("%s, hit %d", point, hit)
			select {
			case <-n.d.Done():
			case <-time.After(time.Second):
				t.Fatalf("%s: the daemon lives, and %v\n%s", point, err, n.d.Log)
			}
			n.d.Start()
			n.removeAll()
			n.nothing()
			if err := n.life(process); err != nil {
				t.Fatalf("after %s: %v\n%s", point, err, n.d.Log)
			}
			n.nothing()
			if t.Failed() {
				t.Fatalf("failpoint %s, hit %d", point, hit)
			}
		}
	}
}
