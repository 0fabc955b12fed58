package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/host/netns"
)

// cases are configurations on which this process and the programs must do the same.
var cases = []struct {
	name, list string
	request    Request
	fails      bool
	program    bool // one of its plugins is always a program
}{
	{name: "plain", list: `{"type":"bridge","bridge":"nebr0","ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.103.1.0/24"}}`},
	{name: "gateway", list: `{"type":"bridge","bridge":"nebr0","isDefaultGateway":true,"hairpinMode":true,"mtu":1400,"dns":{"nameservers":["10.103.1.1"],"search":["a.b"]},
		"ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/24","rangeStart":"10.103.1.20","rangeEnd":"10.103.1.30"}]],"routes":[{"dst":"10.9.0.0/16","gw":"10.103.1.9"},{"dst":"10.8.0.0/16","priority":7}]}}`},
	{name: "masquerade", list: `{"type":"bridge","bridge":"nebr0","isGateway":true,"ipMasq":true,"promiscMode":true,
		"ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/28"}]],"routes":[{"dst":"0.0.0.0/0"}]}},{"type":"portmap","capabilities":{"portMappings":true}}`},
	{name: "dual", list: `{"type":"bridge","bridge":"nebr0","isGateway":true,"ipMasq":true,"hairpinMode":true,
		"ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/24"}],[{"subnet":"fd00:103::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
		{"type":"portmap","capabilities":{"portMappings":true}}`, request: Request{Ports: []PortMapping{
		{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {HostPort: 8053, ContainerPort: 53, Protocol: "udp"}, {HostPort: 8443, ContainerPort: 443, Protocol: "tcp", HostIP: "127.0.0.1"},
		{HostPort: 8444, ContainerPort: 443, Protocol: "tcp", HostIP: "::1"}, {HostPort: 8445, ContainerPort: 443, Protocol: "tcp", HostIP: "0.0.0.0"},
	}}},
	{name: "no snat", list: `{"type":"bridge","bridge":"nebr0","isGateway":true,"ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.103.1.0/24"}},
		{"type":"portmap","snat":false,"capabilities":{"portMappings":true}}`, request: Request{Ports: []PortMapping{{HostPort: 1, ContainerPort: 2, Protocol: "tcp"}}}},
	{name: "masquerade all", list: `{"type":"bridge","bridge":"nebr0","isGateway":true,"ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.103.0.0/21"}},
		{"type":"portmap","masqAll":true,"markMasqBit":20,"capabilities":{"portMappings":true}}`, request: Request{Ports: seventeen()}},
	{name: "asked", list: `{"type":"bridge","bridge":"nebr0","enabledad":true,"capabilities":{"ips":true,"mac":true},"ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/24","gateway":"10.103.1.254"}]]}}`,
		request: Request{Networks: []Wanted{{Name: "net", IfName: "x1", IPs: []string{"10.103.1.77"}, MAC: "02:00:00:00:00:77"}}}},
	{name: "two of a family", list: `{"type":"bridge","bridge":"nebr0","ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/24"}],[{"subnet":"10.103.2.0/24"},{"subnet":"10.103.3.0/24"}]]}}`},
	{name: "point to point", list: `{"type":"ptp","ipMasq":true,"mtu":1450,"dns":{"nameservers":["10.103.1.1"]},
		"ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/24"}],[{"subnet":"fd00:103::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
		{"type":"portmap","capabilities":{"portMappings":true}},{"type":"bandwidth","capabilities":{"bandwidth":true}}`, request: Request{Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}}},
	{name: "limits", list: `{"type":"bridge","bridge":"nebr0","ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.103.1.0/24"}},{"type":"bandwidth","capabilities":{"bandwidth":true}}`,
		request: Request{Bandwidth: &Bandwidth{Ingress: 10e6, Egress: 20e6}}, program: true},
	{name: "loopback", list: `{"type":"loopback"}`},
	{name: "asked for the gateway", fails: true, list: `{"type":"bridge","bridge":"nebr0","capabilities":{"ips":true},"ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/24"}]]}}`,
		request: Request{Networks: []Wanted{{Name: "net", IPs: []string{"10.103.1.1"}}}}},
	{name: "asked outside", fails: true, list: `{"type":"bridge","bridge":"nebr0","isGateway":true,"ipMasq":true,"capabilities":{"ips":true},"ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/24"}]]}}`,
		request: Request{Networks: []Wanted{{Name: "net", IPs: []string{"10.99.1.1"}}}}},
}

func seventeen() []PortMapping {
	var out []PortMapping
	for i := range 17 {
		out = append(out, PortMapping{HostPort: int32(1000 + i), ContainerPort: int32(2000 + i), Protocol: "tcp"})
	}
	return out
}

// sides are one world in which programs run and one in which this process does it.
func sides(t *testing.T, list string, dirs ...string) (programs, builtin *world) {
	programs, builtin = newWorld(t, Config{}), newWorld(t, Config{Builtin: true, BinDirs: append([]string{"/nowhere"}, dirs...)})
	for _, w := range []*world{programs, builtin} {
		w.write("1.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[`+list+`]}`)
	}
	return programs, builtin
}

func TestSameAsThePrograms(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var dirs []string
			if c.program {
				dirs = append(dirs, tools(t))
			}
			a, b := sides(t, c.list, dirs...)
			var done [2][]Result
			for i, w := range []*world{a, b} {
				for _, id := range []string{"pod-one", "pod-two"} {
					r := c.request
					r.ContainerID, r.NetNS = id, w.pod()
					if id == "pod-two" { // it cannot have the same
						r.Ports = nil
						for k := range r.Networks {
							r.Networks = slices.Clone(r.Networks)
							r.Networks[k].IPs = nil
						}
						if c.fails {
							continue
						}
					}
					res, err := w.add(w.plan(r))
					if (err != nil) != c.fails {
						t.Fatal(err)
					}
					done[i] = append(done[i], res)
				}
			}
			if !c.fails {
				same(t, "after ADD", a.dump(done[0]), b.dump(done[1]))
			} else if out := b.ip(b.host, "-br", "link"); strings.Contains(out, "veth") {
				t.Errorf("a link is left of what failed: %s", out)
			}
			for i, w := range []*world{a, b} {
				if err := w.del(done[i][0].Saved); err != nil {
					t.Fatal(err)
				}
			}
			if c.fails {
				if left := append(a.reserved("net"), b.reserved("net")...); len(left) > 0 {
					t.Errorf("addresses are left: %v", left)
				}
				return
			}
			same(t, "after DEL of one", a.dump(done[0]), b.dump(done[1]))
			// The other way round: each is undone by the other.
			a.nets, b.nets = b.nets, a.nets
			for i, w := range []*world{a, b} {
				for range 2 {
					if err := w.del(done[i][1].Saved); err != nil {
						t.Fatal(err)
					}
				}
			}
			same(t, "after DEL by the other", a.dump(done[0]), b.dump(done[1]))
			for _, w := range []*world{a, b} {
				if left := w.reserved("net"); len(left) > 0 {
					t.Errorf("addresses are left: %v", left)
				}
			}
		})
	}
}

func same(t *testing.T, when, a, b string) {
	t.Helper()
	if a == b {
		return
	}
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	var diff []string
	for _, l := range x {
		if !slices.Contains(y, l) {
			diff = append(diff, "programs: "+l)
		}
	}
	for _, l := range y {
		if !slices.Contains(x, l) {
			diff = append(diff, "builtin:  "+l)
		}
	}
	if diff == nil {
		diff = []string{"same lines in another order or number:", a, b}
	}
	t.Errorf("%s:\n%s", when, strings.Join(diff, "\n"))
}

var volatile = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`veth[0-9a-f]{8}`), "vethX"},
	{regexp.MustCompile(`(?i)([0-9a-f]{2}:){5}[0-9a-f]{2}`), "MAC"},
	{regexp.MustCompile(`fe80::[0-9a-f:]+`), "LINKLOCAL"},
	{regexp.MustCompile(`if\d+`), "ifN"},
	{regexp.MustCompile(`(?m)^# .*$`), ""},
	{regexp.MustCompile(`\[\d+:\d+\]`), "[N:N]"},
	{regexp.MustCompile(`(bridge_id|designated_root|designated_bridge) \S+`), "$1 X"},
	{regexp.MustCompile(`(hello_timer|tcn_timer|topology_change_timer|gc_timer|message_age_timer|forward_delay_timer|hold_timer)\s+\S+`), "$1 T"},
	{regexp.MustCompile(`(?m)^\d+: `), ""},
	{regexp.MustCompile(`(numtxqueues|numrxqueues) \d+`), "$1 N"}, // of which one is in use, either way
	{regexp.MustCompile(`link-netnsid \d+`), "link-netnsid N"},
	{regexp.MustCompile(`(port_id|designated_port|port_no) \S+`), "$1 P"},
	{regexp.MustCompile(`(valid_lft|preferred_lft) \S+`), "$1 T"},
}

// dump is all that plugins may have changed, without what differs from run to run.
func (w *world) dump(done []Result) string {
	w.t.Helper()
	var b strings.Builder
	part := func(title, text string) { fmt.Fprintf(&b, "== %s\n%s\n", title, text) }
	run := func(ns string, args ...string) string {
		// Not stderr: ip complains there of what others do in /run/netns.
		out, err := exec.Command("nsenter", append([]string{"--net=" + ns}, args...)...).Output()
		if err != nil {
			w.t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	sorted := func(text string) string {
		lines := strings.Split(mask(text), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	w.settle()
	for _, ns := range w.namespaces() {
		title := filepath.Base(filepath.Dir(ns))
		out := run(ns, "sh", "-c", `ip -d addr; echo ----; ip route show table all; ip -6 route show table all; cd /proc/sys/net; grep -s . ipv4/ip_forward ipv6/conf/all/forwarding ipv6/conf/*/accept_ra ipv6/conf/*/accept_dad ipv6/conf/*/enhanced_dad ipv6/conf/*/keep_addr_on_down ipv6/conf/*/disable_ipv6 ipv4/conf/*/arp_notify ipv4/conf/*/route_localnet ipv4/conf/*/forwarding`)
		links, rest, _ := strings.Cut(out, "----")
		part(title+" links", links)
		part(title+" routes and sysctls", sorted(rest))
	}
	part("iptables", run(w.host, "iptables-save"))
	part("ip6tables", run(w.host, "ip6tables-save"))
	files, _ := filepath.Glob(filepath.Join(w.data, "*", "*"))
	for _, f := range files {
		data, _ := os.ReadFile(f)
		st, err := os.Stat(f)
		if err != nil {
			w.t.Fatal(err)
		}
		part(strings.TrimPrefix(f, w.data), fmt.Sprintf("%s %q", st.Mode(), data))
	}
	for _, r := range done {
		for _, a := range r.Saved.Attachments {
			var v any
			_ = json.Unmarshal(a.Result, &v)
			text, _ := json.MarshalIndent(v, "", " ")
			part("result", string(text))
		}
	}
	return mask(strings.ReplaceAll(b.String(), w.dir, "DIR"))
}

func mask(text string) string {
	for _, v := range volatile {
		text = v.re.ReplaceAllString(text, v.to)
	}
	return text
}

// settle waits until the kernel has done what it does later: addresses are usable,
// a bridge without ports has no carrier.
func (w *world) settle() {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		busy := ""
		for _, ns := range w.namespaces() {
			out := w.ip(ns, "-6", "addr", "show", "tentative")
			links := w.ip(ns, "-br", "link")
			for _, l := range strings.Split(links, "\n") {
				lonely := strings.HasPrefix(l, "nebr0") && !strings.Contains(links, "veth")
				if lonely && !strings.Contains(l, "NO-CARRIER") || strings.HasPrefix(l, "nebr0") && strings.Contains(l, "UNKNOWN") {
					out += l
				}
			}
			busy += out
		}
		if busy == "" {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("the kernel does not settle: %s", busy)
		}
	}
}

func (w *world) namespaces() []string {
	all, _ := filepath.Glob(filepath.Join(w.dir, "netns", "*", "net"))
	return all
}

// What is not known exactly is left to the program.
func TestUnknownKeysGoToTheProgram(t *testing.T) {
	w := newWorld(t, Config{Builtin: true})
	good := `{"cniVersion":"1.0.0","name":"n","type":"bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"10.103.1.0/24"}]]}}`
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"", "", true},
		{`"type":"bridge"`, `"type":"bridge","vlan":7`, false},
		{`"type":"bridge"`, `"type":"bridge","Bridge":"x"`, false},
		{`"type":"host-local"`, `"type":"host-local","resolvConf":"/x"`, false},
		{`"type":"host-local"`, `"type":"dhcp"`, false},
		{`"subnet":`, `"color":1,"subnet":`, false},
		{`"type":"bridge"`, `"type":"bridge","ipMasq":true,"ipMasqBackend":"nftables"`, false},
		{`"type":"bridge"`, `"type":"bridge","args":{}`, false},
	} {
		conf := strings.Replace(good, c.from, c.to, 1)
		if got := w.nets.inProcess(call{verb: "ADD", network: "n", typ: "bridge", stdin: []byte(conf)}); got != c.want {
			t.Errorf("%s: in process %v, want %v", conf, got, c.want)
		}
	}
	if w.nets.inProcess(call{verb: "ADD", typ: "bridge", stdin: []byte(good), args: [][2]string{{"IP", "1.2.3.4"}}}) {
		t.Error("an argument that plugins act on is passed over")
	}
	if w.nets.inProcess(call{verb: "CHECK", typ: "bridge", stdin: []byte(good)}) {
		t.Error("CHECK is the program's")
	}
	// Rules are written here only where iptables writes them to nf_tables.
	masq := []byte(strings.Replace(good, `"type":"bridge"`, `"type":"bridge","ipMasq":true`, 1))
	for kind, want := range map[string]bool{"legacy": false, "nf_tables": true} {
		t.Setenv("PATH", w.fake("iptables", `echo "iptables v1.8.9 (`+kind+`)"`)+":/usr/bin:/bin")
		if got := w.nets.inProcess(call{verb: "ADD", network: "n", typ: "bridge", stdin: masq}); got != want {
			t.Errorf("iptables is %s: in process %v", kind, got)
		}
	}
	// A program that is not the stock one is somebody's own.
	w.nets.run.dirs = []string{w.fake("bridge", "echo my own bridge >&2")}
	if w.nets.inProcess(call{verb: "ADD", typ: "bridge", stdin: []byte(good)}) {
		t.Error("somebody's own plugin is passed over")
	}
	w.nets.run.dirs = []string{"/nowhere"}
	if !w.nets.inProcess(call{verb: "ADD", typ: "bridge", stdin: []byte(good)}) {
		t.Error("a program that is missing is missed")
	}
}

// End cuts the link at once; the namespace takes it away.
func TestEndCutsTheLink(t *testing.T) {
	w := newWorld(t, Config{Builtin: true})
	w.write("1.conflist", bridgeV4)
	a, err := w.add(w.plan(Request{ContainerID: "a", NetNS: w.pod()}))
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.add(w.plan(Request{ContainerID: "b", NetNS: w.pod()}))
	if err != nil {
		t.Fatal(err)
	}
	reach := func() error {
		return exec.Command("nsenter", "--net="+b.Saved.NetNS, "bash", "-c", "echo > /dev/tcp/10.103.1.2/1").Run()
	}
	var exit *exec.ExitError
	if err := reach(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatal(err)
	}
	w.within(func() { err = w.nets.End(context.Background(), a.Saved) })
	if err != nil {
		t.Fatal(err)
	}
	if left := w.reserved("one"); len(left) != 1 {
		t.Errorf("addresses: %v", left)
	}
	out := w.ip(a.Saved.NetNS, "-br", "link", "show", "eth0")
	if !strings.Contains(out, "NO-CARRIER") && !strings.Contains(out, "LOWERLAYERDOWN") {
		t.Errorf("the link is not cut: %s", out)
	}
	if err := netns.Remove(context.Background(), filepath.Dir(a.Saved.NetNS)); err != nil {
		t.Fatal(err)
	}
	for range 400 {
		if out = w.ip(w.host, "-br", "link"); strings.Count(out, "veth") == 1 {
			return
		}
	}
	t.Errorf("the link does not go with its namespace: %s", out)
}

// The program cannot undo this: it deletes the chain while one rule still leads to it.
func TestMasqueradeTwoAddressesOfAFamily(t *testing.T) {
	_, w := sides(t, `{"type":"bridge","bridge":"nebr0","ipMasq":true,"ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/24"}],[{"subnet":"10.103.2.0/24"}]]}}`)
	r, err := w.add(w.plan(Request{ContainerID: "a", NetNS: w.pod()}))
	if err != nil {
		t.Fatal(err)
	}
	save := func() string {
		out, err := exec.Command("nsenter", "--net="+w.host, "iptables-save").CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if out := save(); strings.Count(out, "-j ACCEPT") != 2 || strings.Count(out, "-j MASQUERADE") != 1 || strings.Count(out, "-A POSTROUTING -s 10.103.") != 2 {
		t.Errorf("rules:\n%s", out)
	}
	if err := w.del(r.Saved); err != nil {
		t.Fatal(err)
	}
	if out := save(); strings.Contains(out, "CNI-") {
		t.Errorf("rules are left:\n%s", out)
	}
}

// Another program that never lets go of the addresses' lock does not hang us.
func TestLockThatIsHeld(t *testing.T) {
	_, w := sides(t, `{"type":"bridge","bridge":"nebr0","ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.103.1.0/24"}}`)
	dir := filepath.Join(w.data, "net")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	held := exec.Command("flock", filepath.Join(dir, "lock"), "sh", "-c", "echo; read x")
	in, _ := held.StdinPipe()
	out, _ := held.StdoutPipe()
	if err := held.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = held.Wait() }()
	_, _ = out.Read(make([]byte, 1))
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	var err error
	s := w.plan(Request{ContainerID: "a", NetNS: w.pod()})
	w.within(func() { _, err = w.nets.Add(ctx, s) })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), dir+"/lock") {
		t.Errorf("%v", err)
	}
	in.Close()
	_ = held.Wait()
	if _, err := w.add(s); err != nil {
		t.Error(err)
	}
}
