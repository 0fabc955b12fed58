package container

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
)

// Annotations that the daemon reads from pods of this command line.
const (
	AnnotationNetwork   = "berth.dev/network" // names with commas
	annotationContainer = "berth.dev/container"
)

// network is how one container is connected: not at all, as the host, as another
// container, or by a pod of its own, which has no process and holds the network.
type network struct {
	mode      string // host, none, container:ID, or names of networks
	namespace string // for the spec: "host", a path, or "" for a namespace of its own
	pod       string // id
	ips       []string
	ports     string
}

func (n network) labels() map[string]string {
	return map[string]string{client.LabelNetwork: n.mode, client.LabelPod: n.pod, client.LabelPorts: n.ports, client.LabelIPs: strings.Join(n.ips, ",")}
}

// networkOf reads how a container is connected.
func networkOf(k *containersapi.Container) network {
	l := k.GetLabels()
	n := network{mode: l[client.LabelNetwork], pod: l[client.LabelPod], ports: l[client.LabelPorts]}
	if ips := l[client.LabelIPs]; ips != "" {
		n.ips = strings.Split(ips, ",")
	}
	return n
}

// addressOf is a container's address, "" if it has none of its own.
func addressOf(k *containersapi.Container) string {
	if n := networkOf(k); len(n.ips) > 0 {
		return n.ips[0]
	}
	return ""
}

// remove takes the container off its networks, and may be called again.
func (n network) remove(ctx context.Context, c *client.Client) error {
	if n.pod == "" {
		return nil
	}
	_, err := c.WithOwnPods().Pods().RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: n.pod})
	if err = errs.Ignore(err, errs.NotFound, errs.Unimplemented); err != nil {
		return fmt.Errorf("take the container off its network: %w", err)
	}
	return nil
}

// connect gives the container its network.
func (k *creation) connect(ctx context.Context) (err error) {
	mode := k.x.network
	other, joined := strings.CutPrefix(mode, "container:")
	if len(k.x.ports) > 0 && (mode == "host" || mode == "none" || joined) {
		return errs.New(errs.InvalidArgument, "-p needs a network of the container's own, not --network %s", mode)
	}
	switch {
	case mode == "host":
		k.net = network{mode: "host", namespace: "host"}
	case mode == "none":
		k.net = network{mode: "none"}
	case joined:
		return k.joinNetwork(ctx, other)
	case mode == "" || mode == "default" || mode == "bridge" && !hasNetwork(ctx, k.c, mode):
		ready, why := networkReady(ctx, k.c)
		if !ready && (mode != "" || len(k.x.ports) > 0) {
			return errs.New(errs.FailedPrecondition, "there is no network (%s): make one with `berth network create`, or use --network host or none", why)
		}
		if !ready {
			fmt.Fprintln(k.Err, "berth: there is no network, so the container has a loopback only; `berth network create` makes one, --network none says that none is wanted")
			k.net = network{mode: "none"}
			return nil
		}
		all, _, err := Networks(ctx, k.c)
		if err != nil {
			return err
		}
		return k.ownNetwork(ctx, firstNetwork(all))
	default:
		return k.ownNetwork(ctx, mode)
	}
	return nil
}

// networkReady asks the daemon whether it could connect a pod.
func networkReady(ctx context.Context, c *client.Client) (bool, string) {
	r, err := c.Pods().Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return false, err.Error()
	}
	for _, cond := range r.GetStatus().GetConditions() {
		if cond.GetType() == "NetworkReady" {
			return cond.GetStatus(), cond.GetMessage()
		}
	}
	return false, "the daemon does not say"
}

// Network is a network that the daemon knows.
type Network struct {
	Name   string `json:"network"`
	Path   string `json:"path"`
	Config json.RawMessage
	Error  string `json:"error"`
}

// Networks lists the daemon's networks, the default one first, and the folder in
// which they are described.
func Networks(ctx context.Context, c *client.Client) ([]Network, string, error) {
	r, err := c.Pods().Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return nil, "", err
	}
	var nets struct{ Networks []Network }
	var config struct{ CNIConfDir string }
	err = errors.Join(json.Unmarshal([]byte(cmp.Or(r.GetInfo()["cniconfig"], "{}")), &nets), json.Unmarshal([]byte(cmp.Or(r.GetInfo()["config"], "{}")), &config))
	return nets.Networks, config.CNIConfDir, err
}

// firstNetwork is the one that pods get which ask for none.
func firstNetwork(all []Network) string {
	for _, n := range all {
		if n.Error == "" {
			return n.Name
		}
	}
	return ""
}

func hasNetwork(ctx context.Context, c *client.Client, name string) bool {
	all, _, err := Networks(ctx, c)
	return err == nil && slices.ContainsFunc(all, func(n Network) bool { return n.Name == name && n.Error == "" })
}

func (k *creation) joinNetwork(ctx context.Context, ref string) error {
	other, err := Find(ctx, k.c, ref)
	if err != nil {
		return err
	}
	p, err := running(ctx, k.c, other)
	if err != nil {
		return err
	}
	k.net = network{mode: "container:" + other.GetID(), namespace: fmt.Sprintf("/proc/%d/ns/net", p.GetPid())}
	if k.x.Hostname == "" {
		k.x.Hostname = specOf(other).Hostname
	}
	k.net.ips = networkOf(other).ips
	return nil
}

// ownNetwork makes the pod that holds the container's network.
func (k *creation) ownNetwork(ctx context.Context, names string) error {
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: k.name, Uid: k.id, Namespace: k.c.Namespace}, Hostname: cmp.Or(k.x.Hostname, k.id[:12]),
		Labels: map[string]string{annotationContainer: k.id}, Annotations: map[string]string{},
		DnsConfig: &cri.DNSConfig{Servers: k.x.dns, Searches: k.x.dnsSearch, Options: k.x.dnsOpts},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_NODE},
		}},
	}
	for _, p := range k.x.ports {
		m, err := parsePort(p)
		if err != nil {
			return err
		}
		config.PortMappings = append(config.PortMappings, m...)
	}
	if names != "" {
		config.Annotations[AnnotationNetwork] = names
	}
	data, err := protojson.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(k.dir, podFile), data, 0o600); err != nil {
		return err
	}
	k.net, err = runPod(ctx, k.c, config)
	k.net.mode = cmp.Or(names, "default")
	return err
}

// podFile keeps the pod's description, to make it again after the machine was
// restarted.
const podFile = "pod.json"

// runPod makes a pod, or finds it if it runs, and reads its network.
func runPod(ctx context.Context, c *client.Client, config *cri.PodSandboxConfig) (network, error) {
	pods := c.WithOwnPods().Pods()
	r, err := pods.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return network{}, fmt.Errorf("connect the container: %w", err)
	}
	n := network{pod: r.GetPodSandboxId(), ports: formatPorts(config.GetPortMappings())}
	s, err := pods.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: n.pod, Verbose: true})
	if err != nil {
		return n, err
	}
	var info struct{ NetNamespace string }
	if err := json.Unmarshal([]byte(s.GetInfo()["info"]), &info); err != nil || info.NetNamespace == "" {
		return n, errs.New(errs.Unimplemented, "the daemon does not say where the pod's network namespace is (%v)", err)
	}
	n.namespace = info.NetNamespace
	if ip := s.GetStatus().GetNetwork(); ip.GetIp() != "" {
		n.ips = append(n.ips, ip.GetIp())
		for _, more := range ip.GetAdditionalIps() {
			n.ips = append(n.ips, more.GetIp())
		}
	}
	return n, nil
}

// reconnect makes sure that a container that is to run again has its network: after
// the machine was restarted its pod is gone, and one with another address is made.
func (a *app) reconnect(ctx context.Context, c *client.Client, k *containersapi.Container) error {
	old := networkOf(k)
	if ref, ok := strings.CutPrefix(old.mode, "container:"); ok {
		return rejoin(ctx, c, k, ref)
	}
	if old.pod == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(k.GetLabels()[client.LabelDir], podFile))
	if err != nil {
		return fmt.Errorf("network of container %s: %w", client.DisplayName(k), err)
	}
	config := &cri.PodSandboxConfig{}
	if err := protojson.Unmarshal(data, config); err != nil {
		return fmt.Errorf("network of container %s: %s: %w", client.DisplayName(k), podFile, err)
	}
	now, err := runPod(ctx, c, config)
	if err != nil || now.pod == old.pod {
		return err
	}
	now.mode = old.mode
	if err := setNamespace(ctx, c, k, now.namespace); err != nil {
		return errors.Join(err, now.remove(ctx, c))
	}
	if err := Relabel(ctx, c, k, now.labels()); err != nil {
		return err
	}
	return writeHosts(k.GetLabels()[client.LabelDir], now.ips, specOf(k).Hostname)
}

func rejoin(ctx context.Context, c *client.Client, k *containersapi.Container, ref string) error {
	other, err := Find(ctx, c, ref)
	if err != nil {
		return err
	}
	p, err := running(ctx, c, other)
	if err != nil {
		return err
	}
	return setNamespace(ctx, c, k, fmt.Sprintf("/proc/%d/ns/net", p.GetPid()))
}

// setNamespace changes the network namespace in a container's spec.
func setNamespace(ctx context.Context, c *client.Client, k *containersapi.Container, path string) error {
	s := specOf(k)
	if s.Linux == nil {
		return errs.New(errs.FailedPrecondition, "container %s has no Linux configuration", client.DisplayName(k))
	}
	for i, n := range s.Linux.Namespaces {
		if n.Type == rspec.NetworkNamespace {
			s.Linux.Namespaces[i].Path = path
		}
	}
	return setSpec(ctx, c, k, s)
}
