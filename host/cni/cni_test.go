package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/netns"
)

// tools is the directory of the real plugins.
func tools(t testing.TB) string {
	t.Helper()
	dir := "/root/.cache/berth-tools"
	if p, err := exec.LookPath("host-local"); err == nil {
		dir = filepath.Dir(p)
	}
	if _, err := os.Stat(filepath.Join(dir, "bridge")); err != nil {
		t.Fatalf("the CNI plugins are missing: run `make tools`: %v", err)
	}
	return dir
}

// world is a test's networks, in a network namespace that plays the host: nothing
// that plugins make there can be left behind on the real one.
type world struct {
	t    testing.TB
	dir  string
	conf string // folder of configurations
	data string // of host-local
	host string // network namespace
	nets *Networks
	pods int
}

// noDAD makes IPv6 addresses usable at once: without it tests wait for seconds.
var noDAD = map[string]string{"net.ipv6.conf.default.dad_transmits": "0", "net.ipv6.conf.all.dad_transmits": "0"}

// within runs f in the namespace that plays the host.
func (w *world) within(f func()) {
	w.t.Helper()
	if err := netns.In(w.host, func() error { f(); return nil }); err != nil {
		w.t.Fatal(err)
	}
}

func newWorld(t testing.TB, cfg Config) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-cni-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, conf: filepath.Join(dir, "net.d"), data: filepath.Join(dir, "ipam")}
	if err := os.Mkdir(w.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	set, err := netns.Make(context.Background(), filepath.Join(dir, "netns", "host"), netns.Options{Net: true, Sysctls: noDAD})
	if err != nil {
		t.Fatal(err)
	}
	w.host = set.Net
	t.Cleanup(func() {
		if err := w.nets.Close(); err != nil {
			t.Error(err)
		}
		sets, _ := netns.Sets(filepath.Join(dir, "netns"))
		for _, s := range sets {
			if err := netns.Remove(context.Background(), s); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	cfg.Dir = w.conf
	if cfg.BinDirs == nil {
		cfg.BinDirs = []string{tools(t)}
	}
	w.nets = New(cfg)
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	text = strings.NewReplacer("DATA", w.data, "DIR", w.dir).Replace(text)
	if err := os.WriteFile(filepath.Join(w.conf, name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	w.nets.reload()
}

// pod makes a network namespace for a pod and returns its path.
func (w *world) pod() string {
	w.t.Helper()
	w.pods++
	set, err := netns.Make(context.Background(), filepath.Join(w.dir, "netns", fmt.Sprint("pod", w.pods)), netns.Options{Net: true, Sysctls: noDAD})
	if err != nil {
		w.t.Fatal(err)
	}
	return set.Net
}

func (w *world) plan(r Request) Saved {
	w.t.Helper()
	s, err := w.nets.Plan(r)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// add and del run in the namespace that plays the host; the Go code there must not
// change threads before it starts the plugin, so the plugin is started by nsenter's
// rule: the child inherits the thread's namespace.
func (w *world) add(s Saved) (r Result, err error) {
	w.within(func() { r, err = w.nets.Add(context.Background(), s) })
	return r, err
}

func (w *world) del(s Saved) (err error) {
	w.within(func() { err = w.nets.Del(context.Background(), s) })
	return err
}

func (w *world) ip(ns string, args ...string) string {
	w.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + ns, "ip"}, args...)...).Output()
	if err != nil {
		w.t.Fatalf("ip %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func (w *world) reserved(network string) []string {
	all, _ := filepath.Glob(filepath.Join(w.data, network, "*.*.*.*"))
	return all
}

const bridgeList = `{"cniVersion":"1.0.0","name":"one","plugins":[
 {"type":"bridge","bridge":"nebr0","isGateway":true,"ipMasq":true,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/24"}],[{"subnet":"fd00:103::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}`

func TestPodOnRealPlugins(t *testing.T) {
	w := newWorld(t, Config{Owner: NewOwner("/x")})
	w.write("10-one.conflist", bridgeList)
	w.write("20-two.conf", `{"cniVersion":"0.3.1","name":"two","type":"ptp","ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.103.2.0/24"}}`)
	s := w.plan(Request{ContainerID: "pod1", NetNS: w.pod(), PodName: "p", PodNamespace: "n", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}})
	if len(s.Attachments) != 2 || s.Attachments[1].IfName != "eth1" {
		t.Fatalf("plan: %+v", s)
	}
	r, err := w.add(s)
	if err != nil {
		t.Fatal(err)
	}
	v4, v6 := r.PodIPs(""), r.PodIPs(PreferIPv6)
	if len(v4) != 2 || v4[0].String() != "10.103.1.2" || v6[0].String() != "fd00:103::2" || v6[1] != v4[0] {
		t.Errorf("addresses %v, %v", v4, v6)
	}
	if out := w.ip(s.NetNS, "-br", "addr"); !strings.Contains(out, "10.103.1.2/24") || !strings.Contains(out, "10.103.2.2/24") {
		t.Errorf("in the pod: %s", out)
	}
	if err := func() (err error) { w.within(func() { err = w.nets.Check(context.Background(), r.Saved) }); return }(); err != nil {
		t.Error(err)
	}
	// The row's form, the files gone: DEL must work all the same, and again.
	b, err := r.Saved.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if s, err = DecodeSaved(b); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(w.conf); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.del(s); err != nil {
			t.Fatal(err)
		}
	}
	if left := append(w.reserved("one"), w.reserved("two")...); len(left) > 0 {
		t.Errorf("addresses are left: %v", left)
	}
	if out := w.ip(s.NetNS, "-br", "link"); strings.Contains(out, "eth") {
		t.Errorf("interfaces are left: %s", out)
	}
}

func TestDelAfterTheNamespaceIsGone(t *testing.T) {
	w := newWorld(t, Config{})
	w.write("10-one.conflist", bridgeList)
	s := w.plan(Request{ContainerID: "pod1", NetNS: w.pod(), Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}})
	r, err := w.add(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Remove(context.Background(), filepath.Dir(s.NetNS)); err != nil {
		t.Fatal(err)
	}
	if err := w.del(r.Saved); err != nil {
		t.Fatal(err)
	}
	if left := w.reserved("one"); len(left) > 0 {
		t.Errorf("addresses are left: %v", left)
	}
	out, err := exec.Command("nsenter", "--net="+w.host, "iptables-save").CombinedOutput()
	if err != nil || strings.Contains(string(out), "8080") {
		t.Errorf("rules are left: %v\n%s", err, out)
	}
}

// fake is a plugin for faults: a shell script.
func (w *world) fake(name, script string) string {
	w.t.Helper()
	dir := filepath.Join(w.dir, "bin")
	_ = os.MkdirAll(dir, 0o755)
	script = strings.ReplaceAll(script, "DIR", w.dir)
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

func TestFaultsOfPlugins(t *testing.T) {
	for _, c := range []struct {
		name, script string
		want         []string
		kind         error
	}{
		{"hangs", "echo waiting for the agent >&2; sleep 1000 & echo $! > DIR/child; sleep 1000", []string{"plugin bad of network bad", "ADD", "400ms", "waiting for the agent", "killed"}, errs.Unavailable},
		{"garbage", "echo hello", []string{"plugin bad of network bad", "no CNI result", "hello"}, nil},
		{"nothing", "exit 0", []string{"plugin bad of network bad", "no CNI result"}, nil},
		{"error", `echo '{"cniVersion":"1.0.0","code":7,"msg":"bad subnet","details":"10.0.0.0/99"}'; echo trace >&2; exit 1`, []string{"plugin bad", "bad subnet", "10.0.0.0/99", "code 7", "trace"}, errs.FailedPrecondition},
		{"later", `echo '{"code":11,"msg":"try later"}'; exit 1`, []string{"try later"}, errs.Unavailable},
		{"dies", "echo oops >&2; kill -9 $$", []string{"killed", "oops"}, nil},
		{"flood", "yes | head -c 9000000", []string{"longer than"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, Config{Limit: 400 * time.Millisecond, BinDirs: []string{"placeholder"}})
			w.nets.run.dirs = []string{w.fake("bad", `test "$CNI_COMMAND" = DEL && exit 0
`+c.script)}
			if c.name != "hangs" {
				w.nets.run.limit = 10 * time.Second
			}
			w.write("1.conf", `{"cniVersion":"1.0.0","name":"bad","type":"bad"}`)
			s := w.plan(Request{ContainerID: "p"})
			start := time.Now()
			_, err := w.nets.Add(context.Background(), s)
			if err == nil || time.Since(start) > 8*time.Second {
				t.Fatalf("%v after %s", err, time.Since(start))
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			if c.kind != nil && !errs.Is(err, c.kind) {
				t.Errorf("kind of %v", err)
			}
			if pid, err := os.ReadFile(filepath.Join(w.dir, "child")); err == nil {
				waitGone(t, strings.TrimSpace(string(pid)))
			}
			if err := w.nets.Del(context.Background(), s); err != nil {
				t.Error(err)
			}
		})
	}
}

func waitGone(t *testing.T, pid string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the plugin's child lives: %s", stat)
		}
	}
}

func TestCallersTimeIsOver(t *testing.T) {
	w := newWorld(t, Config{BinDirs: []string{"placeholder"}})
	w.nets.run.dirs = []string{w.fake("bad", "sleep 1000")}
	w.write("1.conf", `{"cniVersion":"1.0.0","name":"bad","type":"bad"}`)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := w.nets.Add(ctx, w.plan(Request{ContainerID: "p"}))
	if !errs.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "plugin bad of network bad: ADD") {
		t.Error(err)
	}
}

func TestWhatPluginsAreTold(t *testing.T) {
	w := newWorld(t, Config{BinDirs: []string{"placeholder"}})
	dir := w.fake("spy", `cat >> DIR/stdin; echo >> DIR/stdin; env | grep ^CNI_ | sort >> DIR/env; echo '{"ips":[{"address":"1.2.3.4/24"}]}'`)
	w.nets.run.dirs = []string{dir}
	w.write("1.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"spy","capabilities":{"portMappings":true,"bandwidth":true,"dns":true,"cgroupPath":true,"io.kubernetes.cri.pod-annotations":true,"ips":true}},{"type":"spy","x":1}]}`)
	s := w.plan(Request{
		ContainerID: "p1", NetNS: "/proc/self/ns/net", PodName: "pod;K8S_POD_UID=evil", PodNamespace: "space", PodUID: "u-1", Annotations: map[string]string{"a": "b"}, CgroupPath: "/kube/p1",
		Ports: []PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "tcp", HostIP: "127.0.0.1"}}, Bandwidth: &Bandwidth{Ingress: 1000000}, DNS: &DNS{Servers: []string{"1.1.1.1"}},
		Networks: []Wanted{{Name: "n", IfName: "net1", IPs: []string{"1.2.3.4/24"}}},
	})
	r, err := w.nets.Add(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	if ips := r.PodIPs(""); len(ips) != 1 || ips[0].String() != "1.2.3.4" {
		t.Error(ips)
	}
	data, _ := os.ReadFile(filepath.Join(w.dir, "stdin"))
	docs := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	var got map[string]any
	if err := json.Unmarshal(docs[0], &got); err != nil {
		t.Fatal(err)
	}
	want := `{"bandwidth":{"egressBurst":0,"egressRate":0,"ingressBurst":4294967295,"ingressRate":1000000},"cgroupPath":"/kube/p1","dns":{"options":null,"searches":null,"servers":["1.1.1.1"]},"io.kubernetes.cri.pod-annotations":{"a":"b"},"ips":["1.2.3.4/24"],"portMappings":[{"containerPort":8080,"hostIP":"127.0.0.1","hostPort":80,"protocol":"tcp"}]}`
	if b, _ := json.Marshal(got["runtimeConfig"]); string(b) != want {
		t.Errorf("runtimeConfig\n%s, want\n%s", b, want)
	}
	if !bytes.Contains(docs[1], []byte(`"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"1.2.3.4/24"}]`)) || bytes.Contains(docs[1], []byte("runtimeConfig")) {
		t.Errorf("second plugin: %s", docs[1])
	}
	env, _ := os.ReadFile(filepath.Join(w.dir, "env"))
	if !strings.HasPrefix(string(env), "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=space;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=u-1\nCNI_COMMAND=ADD\nCNI_CONTAINERID=p1\nCNI_IFNAME=net1\nCNI_NETNS=/proc/self/ns/net\nCNI_PATH="+dir+"\n") {
		t.Errorf("environment: %s", env)
	}
}

func TestBrokenFilesAreNamedAndTheOthersGoOn(t *testing.T) {
	w := newWorld(t, Config{})
	if c := w.nets.Condition(context.Background()); c.Ready || c.Reason != ReasonNotReady || !strings.Contains(c.Message, w.conf) || !strings.Contains(c.Message, "since 2") {
		t.Errorf("empty folder: %+v", c)
	}
	w.write("05-bad.conflist", `{`)
	w.write("06-evil.conf", `{"cniVersion":"1.0.0","name":"x","type":"../../bin/sh"}`)
	w.write("07-version.conf", `{"cniVersion":"9.9.9","name":"y","type":"bridge"}`)
	w.write("08-twice.conf", `{"cniVersion":"1.0.0","name":"one","type":"bridge"}`)
	if err := os.Remove(filepath.Join(w.conf, "08-twice.conf")); err != nil {
		t.Fatal(err)
	}
	w.write("10-one.conflist", bridgeList)
	w.write("11-again.conf", `{"cniVersion":"1.0.0","name":"one","type":"bridge"}`)
	c := w.nets.Condition(context.Background())
	for _, want := range []string{"05-bad.conflist", "06-evil.conf", "07-version.conf", "11-again.conf"} {
		if !strings.Contains(c.Message, want) {
			t.Errorf("%s is not named in %q", want, c.Message)
		}
	}
	if !c.Ready {
		t.Errorf("the good one does not go on: %+v", c)
	}
	if s := w.plan(Request{ContainerID: "p"}); len(s.Attachments) != 1 || s.Attachments[0].Network != "one" {
		t.Errorf("%+v", s)
	}
	w.nets.run.dirs = []string{"/nowhere"}
	w.nets.asked.forget()
	if c := w.nets.Condition(context.Background()); c.Ready || !strings.Contains(c.Message, "plugin bridge of network one is not in /nowhere") || !strings.Contains(c.Message, "10-one.conflist") {
		t.Errorf("missing program: %+v", c)
	}
}

func TestStatusAsksThePlugin(t *testing.T) {
	w := newWorld(t, Config{BinDirs: []string{"placeholder"}})
	w.nets.run.dirs = []string{w.fake("p", `test $CNI_COMMAND = STATUS || exit 3; test -e DIR/good && exit 0; echo '{"cniVersion":"1.1.0","code":50,"msg":"agent is not up"}'; exit 1`)}
	w.write("1.conf", `{"cniVersion":"1.1.0","name":"n","type":"p"}`)
	if c := w.nets.Condition(context.Background()); c.Ready || !strings.Contains(c.Message, "plugin p of network n: STATUS: agent is not up") {
		t.Errorf("%+v", c)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "good"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w.nets.asked.forget()
	if c := w.nets.Condition(context.Background()); !c.Ready || c.Message != "" {
		t.Errorf("%+v", c)
	}
}

func TestFolderIsFollowed(t *testing.T) {
	w := newWorld(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		if err := w.nets.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	until := func(what string, n int) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			w.nets.mu.RLock()
			have := len(w.nets.mu.folder.networks)
			w.nets.mu.RUnlock()
			if have == n {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %d networks, want %d", what, have, n)
			}
		}
	}
	put := func(name string) {
		if err := os.WriteFile(filepath.Join(w.conf, name), []byte(`{"cniVersion":"1.0.0","name":"`+name+`","type":"bridge"}`), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("a.conf")
	until("written", 1)
	put("b.conf")
	until("second", 2)
	if err := os.Rename(w.conf, w.conf+".old"); err != nil {
		t.Fatal(err)
	}
	until("moved away", 0)
	if err := os.Mkdir(w.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	put("c.conf")
	until("made again", 1)
	if err := os.RemoveAll(w.conf); err != nil {
		t.Fatal(err)
	}
	until("removed", 0)
	if err := os.MkdirAll(w.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	put("d.conf")
	put("e.conf")
	until("made a third time", 2)
	cancel()
	wg.Wait()
}

func TestLeftoversOfOursGoAndOthersStay(t *testing.T) {
	owner := NewOwner("/this/one")
	pins := map[string]string{}
	w := newWorld(t, Config{Owner: owner, NetNS: func(id string) string { return pins[id] }, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	w.write("10-one.conflist", bridgeList)
	ids := []string{owner.NewID(), owner.NewID(), NewOwner("/another").NewID(), "plain"}
	for _, id := range ids {
		pins[id] = w.pod()
		if _, err := w.add(w.plan(Request{ContainerID: id, NetNS: pins[id]})); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.within(func() {
		err = w.nets.GC(context.Background(), func() []Attachment { return []Attachment{{"one", ids[0], "eth0"}} })
	})
	if err != nil {
		t.Fatal(err)
	}
	if out := w.ip(pins[ids[1]], "-br", "link"); strings.Contains(out, "eth0") {
		t.Errorf("the leftover's link is there: %s", out)
	}
	var left []string
	for _, f := range w.reserved("one") {
		data, _ := os.ReadFile(f)
		left = append(left, strings.Fields(string(data))[0])
	}
	if len(left) != 3 || strings.Contains(fmt.Sprint(left), ids[1]) {
		t.Errorf("left: %v", left)
	}
}

func TestVerbGC(t *testing.T) {
	w := newWorld(t, Config{BinDirs: []string{"placeholder"}})
	w.nets.run.dirs = []string{w.fake("p", `echo $CNI_COMMAND >> DIR/verbs; cat > DIR/stdin`)}
	valid := func() []Attachment { return []Attachment{{"n", "a", "eth0"}, {"other", "b", "eth0"}} }
	w.write("1.conf", `{"cniVersion":"1.1.0","name":"n","type":"p"}`)
	w.write("2.conflist", `{"cniVersion":"1.1.0","name":"shared","disableGC":true,"plugins":[{"type":"p"}]}`)
	w.write("3.conf", `{"cniVersion":"1.0.0","name":"old","type":"p"}`)
	if err := w.nets.GC(context.Background(), valid); err != nil {
		t.Fatal(err)
	}
	verbs, _ := os.ReadFile(filepath.Join(w.dir, "verbs"))
	stdin, _ := os.ReadFile(filepath.Join(w.dir, "stdin"))
	if string(verbs) != "GC\n" || !strings.Contains(string(stdin), `"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]`) {
		t.Errorf("%s %s", verbs, stdin)
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]uint64{"10M": 10e6, "1.5Gi": 3 << 29, "1k": 1000, "2000": 2000, "1e6": 1e6, "1000000m": 1000, "5E3": 5000} {
		if got, err := ParseRate(text); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, bad := range []string{"", "M", "10Mbit", "-10M", "0", "999", "2P", "0x10", "nan", "inf", "1_000", "10 M"} {
		if got, err := ParseRate(bad); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%q: %d, %v", bad, got, err)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	w := newWorld(t, Config{Most: 1})
	if _, err := w.nets.Plan(Request{ContainerID: "p"}); !errs.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), w.conf) {
		t.Errorf("no configuration: %v", err)
	}
	w.write("10-one.conflist", bridgeList)
	w.write("20-two.conf", `{"cniVersion":"0.3.1","name":"two","type":"ptp"}`)
	if s := w.plan(Request{ContainerID: "p"}); len(s.Attachments) != 1 {
		t.Errorf("at most one: %+v", s.Attachments)
	}
	if s := w.plan(Request{ContainerID: "p", Networks: []Wanted{{Name: "two", IfName: "eth0"}, {Name: "one"}}}); s.Attachments[0].IfName != "eth0" || s.Attachments[1].IfName != "eth1" {
		t.Errorf("%+v", s.Attachments)
	}
	for _, r := range []Request{
		{ContainerID: "../x"}, {}, {ContainerID: "p", Networks: []Wanted{{Name: "none"}}},
		{ContainerID: "p", Networks: []Wanted{{Name: "one", IfName: "lo"}}}, {ContainerID: "p", Networks: []Wanted{{Name: "one", IfName: "a/b"}}},
		{ContainerID: "p", Networks: []Wanted{{Name: "one", IPs: []string{"x"}}}}, {ContainerID: "p", Ports: []PortMapping{{HostPort: 70000, ContainerPort: 1}}},
		{ContainerID: "p", Ports: []PortMapping{{HostPort: 7, ContainerPort: 1, HostIP: "no"}}},
	} {
		if _, err := w.nets.Plan(r); err == nil {
			t.Errorf("%+v is let through", r)
		}
	}
}

func TestOwner(t *testing.T) {
	a, b := NewOwner("/a"), NewOwner("/b")
	id := a.NewID()
	if len(id) != 64 || !a.Owns(id) || b.Owns(id) || (Owner{}).Owns(id) || a.Owns(id[1:]) || NewOwner("/a/../a") != a {
		t.Errorf("%s %+v", id, a)
	}
}
