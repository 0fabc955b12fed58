package pod

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/container"
	"github.com/berthd/berth/cli/session"
)

// networkRow is a network as lists show it.
type networkRow struct {
	Name, Default, Plugins, Subnets, Path string
}

// conflist is the part of a network's description that is read and written here
// (CNI specification 1.1, section 1).
type conflist struct {
	CNIVersion string           `json:"cniVersion"`
	Name       string           `json:"name"`
	Plugins    []map[string]any `json:"plugins"`
}

func (a *app) networkCommand() *cobra.Command {
	return session.Noun("network", "Work with the networks of containers and pods", []string{"networks", "net"},
		a.networkLs(), a.networkCreate(), a.networkInspect(), a.networkRm())
}

func (a *app) networkLs() *cobra.Command {
	var l session.Listing
	cmd := l.Add(&cobra.Command{Use: "ls", Short: "List networks; the first is the default", Args: session.ExactArgs(0), Example: "  berth network ls"}, false)
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		all, dir, err := container.Networks(ctx, c)
		if err != nil {
			return err
		}
		var rows []networkRow
		for i, n := range all {
			rows = append(rows, describeNetwork(n, i == 0))
		}
		if len(rows) == 0 && !l.Quiet && l.Format == "" {
			fmt.Fprintf(a.Err, "There is no network in %s; make one with `berth network create`.\n", dir)
		}
		return session.Print(a.App, l, rows, func(r networkRow) string { return r.Name }, "NAME", "DEFAULT", "PLUGINS", "SUBNETS", "PATH")
	})
	return cmd
}

func describeNetwork(n container.Network, first bool) networkRow {
	r := networkRow{Name: cmp.Or(n.Name, "-"), Path: n.Path}
	if first && n.Error == "" {
		r.Default = "yes"
	}
	if n.Error != "" {
		r.Plugins = "broken: " + n.Error
		return r
	}
	var list conflist
	if json.Unmarshal(n.Config, &list) != nil {
		return r
	}
	var plugins, subnets []string
	for _, p := range list.Plugins {
		plugins = append(plugins, fmt.Sprint(p["type"]))
		for _, s := range findSubnets(p) {
			subnets = append(subnets, s.String())
		}
	}
	r.Plugins, r.Subnets = strings.Join(plugins, ","), strings.Join(subnets, ",")
	return r
}

// findSubnets looks for every "subnet" in a plugin's configuration.
func findSubnets(v any) []netip.Prefix {
	var out []netip.Prefix
	switch v := v.(type) {
	case map[string]any:
		for _, k := range session.Keys(v) {
			if s, ok := v[k].(string); ok && k == "subnet" {
				if p, err := netip.ParsePrefix(s); err == nil {
					out = append(out, p.Masked())
				}
				continue
			}
			out = append(out, findSubnets(v[k])...)
		}
	case []any:
		for _, e := range v {
			out = append(out, findSubnets(e)...)
		}
	}
	return out
}

// created is what network create is told.
type created struct {
	subnets         []string
	gateway, bridge string
	internal        bool
	mtu             int
	driver, parent  string
	makeDefault     bool
}

func (a *app) networkCreate() *cobra.Command {
	var x created
	cmd := &cobra.Command{
		Use: "create [flags] [NAME]", Short: "Make a network: a bridge with addresses, masquerading and port mappings",
		Long: `Make a network (default name: bridge) and print its name. It is a CNI configuration in the daemon's folder, so
pods can use it too, and the first one there is the default.`,
		Example: "  berth network create\n  berth network create --subnet 10.20.0.0/24 --subnet fd00:20::/64 blue\n  berth network create --driver macvlan --parent eth0 --subnet 192.168.1.0/24 lan",
		Args:    session.RangeArgs(0, 1),
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		name := "bridge"
		if len(args) == 1 {
			name = args[0]
		}
		return a.createNetwork(ctx, c, name, x)
	})
	f := cmd.Flags()
	f.StringArrayVar(&x.subnets, "subnet", nil, "`prefix` of its addresses (default: one that is free here); one for IPv4 and one for IPv6")
	f.StringVar(&x.gateway, "gateway", "", "`address` of this machine on it (default: the first)")
	f.StringVar(&x.bridge, "bridge", "", "`name` of the bridge (default: made of the network's)")
	f.BoolVar(&x.internal, "internal", false, "no way out of the network")
	f.IntVar(&x.mtu, "mtu", 0, "largest packet in `bytes`")
	f.StringVarP(&x.driver, "driver", "d", "bridge", "`plugin`: bridge, macvlan or ipvlan")
	f.StringVar(&x.parent, "parent", "", "`interface` of this machine for macvlan and ipvlan")
	f.BoolVar(&x.makeDefault, "default", false, "sort it before the others, so that it is the default")
	return cmd
}

const maxBridgeName = 15 // bytes, of an interface (IFNAMSIZ of netdevice(7))

func (a *app) createNetwork(ctx context.Context, c *client.Client, name string, x created) error {
	if err := id.Check("network name", name); err != nil {
		return err
	}
	if slices.Contains([]string{"host", "none", "default"}, name) {
		return errs.New(errs.InvalidArgument, "network name %q means something else: use another", name)
	}
	all, dir, err := container.Networks(ctx, c)
	if err != nil {
		return err
	}
	if dir == "" {
		return errs.New(errs.Unimplemented, "the daemon at %s does not say where its networks are described", c.Address)
	}
	if i := slices.IndexFunc(all, func(n container.Network) bool { return n.Name == name }); i >= 0 {
		return errs.New(errs.AlreadyExists, "network %s is there already: %s", name, all[i].Path)
	}
	prefixes, err := x.prefixes(all)
	if err != nil {
		return err
	}
	pl, err := c.Places(ctx)
	if err != nil {
		return err
	}
	list, err := x.describe(name, prefixes, filepath.Join(pl.Root, "cni"))
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	order := "50"
	if x.makeDefault {
		order = "00"
	}
	path := filepath.Join(dir, order+"-berth-"+name+".conflist")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := writeWhole(path, append(data, '\n')); err != nil {
		return err
	}
	if err := waitNetwork(ctx, c, name, true); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	fmt.Fprintln(a.Out, name)
	return nil
}

// writeWhole makes a file that appears at once and must not be there.
func writeWhole(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".berth-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Link(tmp.Name(), path)
}

// settleTime is how long the daemon may take to see a change of its folder.
const settleTime = 5 * time.Second

// waitNetwork waits until the daemon knows a network, or no longer.
func waitNetwork(ctx context.Context, c *client.Client, name string, there bool) error {
	end := time.Now().Add(settleTime)
	for {
		all, _, err := container.Networks(ctx, c)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(n container.Network) bool { return n.Name == name })
		if (i >= 0) == there {
			if there && all[i].Error != "" {
				return errs.New(errs.InvalidArgument, "the daemon refuses the network: %s", all[i].Error)
			}
			return nil
		}
		if time.Now().After(end) {
			return errs.New(errs.Unavailable, "the daemon has not seen the change of network %s within %s", name, settleTime)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// prefixes are the subnets that were asked for, or a free one.
func (x created) prefixes(all []container.Network) ([]netip.Prefix, error) {
	used := usedPrefixes(all)
	var out []netip.Prefix
	for _, s := range x.subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, errs.New(errs.InvalidArgument, "--subnet %q: write it as 10.20.0.0/24", s)
		}
		for _, u := range used {
			if u.Overlaps(p) {
				return nil, errs.New(errs.AlreadyExists, "--subnet %s overlaps with %s, which is in use here", s, u)
			}
		}
		out = append(out, p.Masked())
	}
	if len(out) > 0 || x.driver != "bridge" {
		return out, nil
	}
	for n := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 89, byte(n), 0}), 24)
		if !slices.ContainsFunc(used, p.Overlaps) {
			return []netip.Prefix{p}, nil
		}
	}
	return nil, errs.New(errs.ResourceExhausted, "no subnet of 10.89.0.0/16 is free: say one with --subnet")
}

// usedPrefixes are those of other networks and of this machine's interfaces.
func usedPrefixes(all []container.Network) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range all {
		var v any
		if json.Unmarshal(n.Config, &v) == nil {
			out = append(out, findSubnets(v)...)
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return out
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Masked())
		}
	}
	return out
}

// describe is the network as CNI plugins read it; its addresses are noted in dir.
func (x created) describe(name string, prefixes []netip.Prefix, dir string) (conflist, error) {
	ipam := map[string]any{"type": "host-local", "dataDir": dir}
	var ranges, routes []any
	for _, p := range prefixes {
		r := map[string]any{"subnet": p.String()}
		if x.gateway != "" {
			g, err := netip.ParseAddr(x.gateway)
			if err != nil {
				return conflist{}, errs.New(errs.InvalidArgument, "--gateway %q is no address", x.gateway)
			}
			if p.Contains(g) {
				r["gateway"] = g.String()
			}
		}
		ranges = append(ranges, []any{r})
		all := "0.0.0.0/0"
		if p.Addr().Is6() {
			all = "::/0"
		}
		if !x.internal {
			routes = append(routes, map[string]any{"dst": all})
		}
	}
	if ipam["ranges"] = ranges; routes != nil {
		ipam["routes"] = routes
	}
	main := map[string]any{"type": x.driver, "ipam": ipam}
	list := conflist{CNIVersion: "1.0.0", Name: name, Plugins: []map[string]any{main}}
	if x.mtu > 0 {
		main["mtu"] = x.mtu
	}
	switch x.driver {
	case "bridge":
		main["bridge"] = cmp.Or(x.bridge, bridgeName(name))
		if len(main["bridge"].(string)) > maxBridgeName {
			return list, errs.New(errs.InvalidArgument, "--bridge %s: at most %d characters", x.bridge, maxBridgeName)
		}
		main["isGateway"], main["ipMasq"], main["hairpinMode"] = true, !x.internal, true
		list.Plugins = append(list.Plugins, map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}})
	case "macvlan", "ipvlan":
		if x.parent == "" || len(prefixes) == 0 {
			return list, errs.New(errs.InvalidArgument, "--driver %s needs --parent and --subnet", x.driver)
		}
		main["master"] = x.parent
	default:
		return list, errs.New(errs.InvalidArgument, "--driver %s: there are bridge, macvlan and ipvlan; for others write a CNI configuration into the daemon's folder", x.driver)
	}
	return list, nil
}

// bridgeName is an interface's name made of a network's.
func bridgeName(name string) string {
	s := "br-" + name
	return s[:min(len(s), maxBridgeName)]
}

func findNetwork(ctx context.Context, c *client.Client, name string) (container.Network, error) {
	all, _, err := container.Networks(ctx, c)
	if err != nil {
		return container.Network{}, err
	}
	for _, n := range all {
		if n.Name == name {
			return n, nil
		}
	}
	return container.Network{}, errs.New(errs.NotFound, "no such network: %s; `berth network ls` lists what there is", name)
}

func (a *app) networkInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME...", Short: "Show the descriptions of networks", Args: session.MinArgs(1), Example: "  berth network inspect bridge",
		RunE: a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
			var out []any
			for _, name := range args {
				n, err := findNetwork(ctx, c, name)
				if err != nil {
					return err
				}
				out = append(out, n)
			}
			return a.JSON(out)
		}),
	}
}

func (a *app) networkRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{Use: "rm NAME...", Short: "Remove networks that nothing uses", Args: session.MinArgs(1), Aliases: []string{"remove"}, Example: "  berth network rm blue"}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		return a.ForEach(args, func(name string) error {
			n, err := findNetwork(ctx, c, name)
			if err != nil {
				return err
			}
			all, _, err := container.Networks(ctx, c)
			if err != nil {
				return err
			}
			users, err := networkUsers(ctx, c, name, all[0].Name == name)
			if err != nil {
				return err
			}
			if len(users) > 0 && !force {
				return errs.New(errs.FailedPrecondition, "network %s is used by %s: remove these first, or use -f; they keep their addresses", name, strings.Join(users, ", "))
			}
			if err := os.Remove(n.Path); err != nil {
				return err
			}
			return errors.Join(waitNetwork(ctx, c, name, false), removeBridge(n), removeAddresses(n))
		})
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if pods and containers use it")
	return cmd
}

// networkUsers lists the pods on a network, in every namespace: those that asked for
// it, and for the first network those that asked for none.
func networkUsers(ctx context.Context, c *client.Client, name string, first bool) ([]string, error) {
	l, err := c.Namespaces().List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, ns := range l.GetNamespaces() {
		pods, err := c.In(ns.GetName()).WithOwnPods().Pods().ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		if err != nil {
			return nil, err
		}
		for _, p := range pods.GetItems() {
			asked := p.GetAnnotations()[container.AnnotationNetwork]
			if slices.Contains(strings.Split(asked, ","), name) || first && asked == "" && p.GetState() == cri.PodSandboxState_SANDBOX_READY {
				out = append(out, p.GetMetadata().GetName())
			}
		}
	}
	return out, nil
}

// removeBridge takes away the bridge that the plugin made for a network of ours.
// CNI has no verb for it. A bridge that others use stays.
func removeBridge(n container.Network) error {
	var list conflist
	if !strings.Contains(filepath.Base(n.Path), "-berth-") || json.Unmarshal(n.Config, &list) != nil || len(list.Plugins) == 0 {
		return nil
	}
	name, _ := list.Plugins[0]["bridge"].(string)
	if name == "" || strings.Contains(name, "/") {
		return nil
	}
	if ports, err := os.ReadDir(filepath.Join("/sys/class/net", name, "brif")); err != nil || len(ports) > 0 {
		return nil
	}
	return deleteLink(name)
}

// removeAddresses takes away the folder in which host-local noted the addresses of a
// network of ours, if it holds none.
func removeAddresses(n container.Network) error {
	var list conflist
	if !strings.Contains(filepath.Base(n.Path), "-berth-") || json.Unmarshal(n.Config, &list) != nil || len(list.Plugins) == 0 {
		return nil
	}
	ipam, _ := list.Plugins[0]["ipam"].(map[string]any)
	base, _ := ipam["dataDir"].(string)
	if ipam["type"] != "host-local" || id.Check("network name", n.Name) != nil {
		return nil
	}
	dir := filepath.Join(cmp.Or(base, "/var/lib/cni/networks"), n.Name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lock" && !strings.HasPrefix(e.Name(), "last_reserved_ip.") {
			return nil // an address
		}
	}
	return os.RemoveAll(dir)
}
