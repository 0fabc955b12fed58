package pod

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cli/container"
)

const web = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: n, uid: u, labels: {app: web}}
spec:
  hostname: box
  securityContext: {runAsUser: 7, fsGroup: 9, sysctls: [{name: a.b, value: "1"}]}
  hostAliases: [{ip: 10.0.0.1, hostnames: [far, away]}]
  volumes: [{name: v, emptyDir: {}}, {name: h, hostPath: {path: /etc}}]
  containers:
  - name: c
    image: busybox
    command: [sh, $(ONE)]
    args: [$(TWO), $$(ONE), $(NONE)]
    env: [{name: ONE, value: "1"}, {name: TWO, value: "$(ONE)2"}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: L, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}]
    ports: [{containerPort: 80, hostPort: 8080, protocol: UDP}]
    resources: {limits: {memory: 1.5Mi, cpu: 250m}, requests: {cpu: "2"}}
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}, seccompProfile: {type: Unconfined}}
    volumeMounts: [{name: v, mountPath: /v, readOnly: true}, {name: h, mountPath: /h, mountPropagation: HostToContainer}]
`

func TestManifest(t *testing.T) {
	pods, warnings, err := readManifests(strings.NewReader(web))
	if err != nil || len(pods) != 1 || len(warnings) != 0 {
		t.Fatalf("%v, %v, %v", pods, warnings, err)
	}
	m := pods[0]
	s, err := m.sandbox("/d")
	if err != nil {
		t.Fatal(err)
	}
	if s.GetHostname() != "box" || s.GetLogDirectory() != "/d/logs" || s.GetAnnotations()["berth.dev/hosts"] != "far:10.0.0.1,away:10.0.0.1" ||
		s.GetPortMappings()[0].GetProtocol() != cri.Protocol_UDP || s.GetLinux().GetSysctls()["a.b"] != "1" {
		t.Errorf("sandbox: %v", s)
	}
	c, err := m.container(m.Spec.Containers[0], facts{ip: "10.9.9.9", dir: "/d", image: "id"}, 2)
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for _, e := range c.GetEnvs() {
		env[e.GetKey()] = string(e.GetValue())
	}
	for what, ok := range map[string]bool{
		"environment": env["TWO"] == "12" && env["IP"] == "10.9.9.9" && env["L"] == "web",
		"command":     strings.Join(c.GetCommand(), " ") == "sh 1" && strings.Join(c.GetArgs(), " ") == "12 $(ONE) $(NONE)",
		"log":         c.GetLogPath() == "c/2.log",
		"limits": c.GetLinux().GetResources().GetMemoryLimitInBytes() == 3<<19 && c.GetLinux().GetResources().GetCpuQuota() == 25_000 &&
			c.GetLinux().GetResources().GetCpuShares() == 2048,
		"security": c.GetLinux().GetSecurityContext().GetNoNewPrivs() && c.GetLinux().GetSecurityContext().GetRunAsUser().GetValue() == 7 &&
			c.GetLinux().GetSecurityContext().GetSeccomp().GetProfileType() == cri.SecurityProfile_Unconfined && len(c.GetLinux().GetSecurityContext().GetMaskedPaths()) > 0,
		"mounts": len(c.GetMounts()) == 2 && c.GetMounts()[0].GetHostPath() == "/d/volumes/v" && c.GetMounts()[0].GetReadonly() &&
			c.GetMounts()[1].GetPropagation() == cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
	} {
		if !ok {
			t.Errorf("%s: %v", what, c)
		}
	}
}

func TestManifestsThatCannotBeKept(t *testing.T) {
	pod := func(spec string) string { return "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n" + spec }
	one := "  containers: [{name: a, image: b, "
	for text, want := range map[string]string{
		"":                                      "is empty",
		"kind: Deployment\napiVersion: apps/v1": "a Deployment of apps/v1",
		"{":                                     "manifest:",
		pod("  containers: []"):                 "spec.containers is empty",
		pod("  containers: [{name: a}]"):        "a name and an image",
		pod("  containers: [{name: a, image: b}, {name: a, image: b}]"):                "two containers",
		pod(one + "volumeMounts: [{name: v, mountPath: /v}]}]"):                        "which spec.volumes has not",
		pod(one + "env: [{name: a, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]"):  "fieldRef only",
		pod("  volumes: [{name: v, secret: {}}]\n  containers: [{name: a, image: b}]"): "volume v: without a cluster",
	} {
		if _, _, err := readManifests(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	_, warnings, err := readManifests(strings.NewReader(pod("  tolerations: []\n  containers: [{name: a, image: b}]")))
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "tolerations") {
		t.Errorf("%v, %v: want a warning that names tolerations", warnings, err)
	}
}

func TestQuantity(t *testing.T) {
	for q, want := range map[quantity]float64{"1": 1, "500m": 0.5, "1.5Gi": 1.5 * (1 << 30), "2k": 2000, "1M": 1e6} {
		if got, err := q.number(); err != nil || got != want {
			t.Errorf("%s = %v, %v; want %v", q, got, err, want)
		}
	}
	for _, q := range []quantity{"", "x", "1Q", "-1", "1e3"} {
		if got, err := q.number(); err == nil {
			t.Errorf("%s = %v, want an error", q, got)
		}
	}
}

func TestSubPathStaysInItsVolume(t *testing.T) {
	dir := t.TempDir()
	m := &manifest{}
	m.Spec.Volumes = []volumeSpec{{Name: "v", EmptyDir: &struct {
		Medium    string   `json:"medium"`
		SizeLimit quantity `json:"sizeLimit"`
	}{}}}
	if err := m.makeVolumes(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := m.mounts(ctrSpec{VolumeMounts: []volumeMount{{Name: "v", MountPath: "/x", SubPath: "a/b"}}}, dir); err != nil || got[0].GetHostPath() != filepath.Join(dir, "volumes/v/a/b") {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := m.mounts(ctrSpec{VolumeMounts: []volumeMount{{Name: "v", MountPath: "/x", SubPath: "../.."}}}, dir); err == nil {
		t.Error("a subPath leaves its volume")
	}
	if _, err := os.Stat(filepath.Join(dir, "volumes/v/a/b")); err != nil {
		t.Error(err)
	}
}

func TestNetworkDescription(t *testing.T) {
	x := created{driver: "bridge"}
	list, err := x.describe("a-long-name-of-a-network", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64")}, "/d")
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"cniVersion":"1.0.0","name":"a-long-name-of-a-network","plugins":[{"bridge":"br-a-long-name-","hairpinMode":true,"ipMasq":true,"ipam":{"dataDir":"/d",` +
		`"ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"type":"host-local"},"isGateway":true,"type":"bridge"},` +
		`{"capabilities":{"portMappings":true},"type":"portmap"}]}`
	if string(data) != want {
		t.Errorf("%s\nwant\n%s", data, want)
	}
	used := []container.Network{{Config: data}}
	for s, ok := range map[string]bool{"10.1.0.128/25": false, "fd00::1:0/112": false, "10.2.0.0/24": true, "nonsense": false} {
		if _, err := (created{subnets: []string{s}, driver: "bridge"}).prefixes(used); (err == nil) != ok {
			t.Errorf("--subnet %s: %v", s, err)
		}
	}
	if p, err := (created{driver: "bridge"}).prefixes(used); err != nil || len(p) != 1 {
		t.Errorf("a free subnet: %v, %v", p, err)
	}
	if _, err := (created{driver: "macvlan"}).describe("m", nil, "/d"); err == nil {
		t.Error("macvlan without a parent is no error")
	}
}
