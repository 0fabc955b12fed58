package pod

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/berthd/berth/base/errs"
)

// manifest is a Kubernetes Pod (core/v1) as far as one machine without a cluster can
// run it. The names are Kubernetes'.
type manifest struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		UID         string            `json:"uid"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec podSpec `json:"spec"`
}

type podSpec struct {
	Containers            []ctrSpec      `json:"containers"`
	InitContainers        []ctrSpec      `json:"initContainers"`
	Volumes               []volumeSpec   `json:"volumes"`
	RestartPolicy         string         `json:"restartPolicy"`
	Hostname              string         `json:"hostname"`
	HostNetwork           bool           `json:"hostNetwork"`
	HostPID               bool           `json:"hostPID"`
	HostIPC               bool           `json:"hostIPC"`
	HostUsers             *bool          `json:"hostUsers"`
	ShareProcessNamespace bool           `json:"shareProcessNamespace"`
	RuntimeClassName      string         `json:"runtimeClassName"`
	DNSPolicy             string         `json:"dnsPolicy"`
	TerminationGrace      *int64         `json:"terminationGracePeriodSeconds"`
	ActiveDeadline        *int64         `json:"activeDeadlineSeconds"`
	SecurityContext       podSecurity    `json:"securityContext"`
	HostAliases           []hostAlias    `json:"hostAliases"`
	DNSConfig             *dnsSpec       `json:"dnsConfig"`
	NodeName              string         `json:"nodeName"`
	ServiceAccount        string         `json:"serviceAccountName"`
	EnableServiceLinks    *bool          `json:"enableServiceLinks"`
	AutomountToken        *bool          `json:"automountServiceAccountToken"`
	Overhead              map[string]any `json:"overhead"`
}

type hostAlias struct {
	IP        string   `json:"ip"`
	Hostnames []string `json:"hostnames"`
}

type dnsSpec struct {
	Nameservers []string `json:"nameservers"`
	Searches    []string `json:"searches"`
	Options     []struct {
		Name  string  `json:"name"`
		Value *string `json:"value"`
	} `json:"options"`
}

type ctrSpec struct {
	Name            string        `json:"name"`
	Image           string        `json:"image"`
	ImagePullPolicy string        `json:"imagePullPolicy"`
	Command         []string      `json:"command"`
	Args            []string      `json:"args"`
	WorkingDir      string        `json:"workingDir"`
	Env             []envVar      `json:"env"`
	Ports           []portSpec    `json:"ports"`
	VolumeMounts    []volumeMount `json:"volumeMounts"`
	Resources       struct {
		Limits   map[string]quantity `json:"limits"`
		Requests map[string]quantity `json:"requests"`
	} `json:"resources"`
	SecurityContext ctrSecurity `json:"securityContext"`
	Stdin           bool        `json:"stdin"`
	StdinOnce       bool        `json:"stdinOnce"`
	TTY             bool        `json:"tty"`
	RestartPolicy   string      `json:"restartPolicy"`
}

type envVar struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	ValueFrom *struct {
		FieldRef *struct {
			FieldPath string `json:"fieldPath"`
		} `json:"fieldRef"`
	} `json:"valueFrom"`
}

type portSpec struct {
	Name          string `json:"name"`
	ContainerPort int32  `json:"containerPort"`
	HostPort      int32  `json:"hostPort"`
	HostIP        string `json:"hostIP"`
	Protocol      string `json:"protocol"`
}

type volumeMount struct {
	Name              string `json:"name"`
	MountPath         string `json:"mountPath"`
	SubPath           string `json:"subPath"`
	ReadOnly          bool   `json:"readOnly"`
	MountPropagation  string `json:"mountPropagation"`
	RecursiveReadOnly string `json:"recursiveReadOnly"`
}

type volumeSpec struct {
	Name     string `json:"name"`
	EmptyDir *struct {
		Medium    string   `json:"medium"`
		SizeLimit quantity `json:"sizeLimit"`
	} `json:"emptyDir"`
	HostPath *struct {
		Path string `json:"path"`
		Type string `json:"type"`
	} `json:"hostPath"`
}

type sysctl struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type podSecurity struct {
	RunAsUser          *int64          `json:"runAsUser"`
	RunAsGroup         *int64          `json:"runAsGroup"`
	RunAsNonRoot       *bool           `json:"runAsNonRoot"`
	SupplementalGroups []int64         `json:"supplementalGroups"`
	FSGroup            *int64          `json:"fsGroup"`
	Sysctls            []sysctl        `json:"sysctls"`
	SeccompProfile     *seccompProfile `json:"seccompProfile"`
}

type seccompProfile struct {
	Type             string `json:"type"`
	LocalhostProfile string `json:"localhostProfile"`
}

type ctrSecurity struct {
	RunAsUser                *int64          `json:"runAsUser"`
	RunAsGroup               *int64          `json:"runAsGroup"`
	RunAsNonRoot             *bool           `json:"runAsNonRoot"`
	Privileged               bool            `json:"privileged"`
	ReadOnlyRootFilesystem   bool            `json:"readOnlyRootFilesystem"`
	AllowPrivilegeEscalation *bool           `json:"allowPrivilegeEscalation"`
	SeccompProfile           *seccompProfile `json:"seccompProfile"`
	Capabilities             struct {
		Add  []string `json:"add"`
		Drop []string `json:"drop"`
	} `json:"capabilities"`
}

// quantity is a number as Kubernetes writes it: 500m, 1.5, 128Mi, 1G.
type quantity string

// UnmarshalJSON takes numbers without quotes, too.
func (q *quantity) UnmarshalJSON(b []byte) error {
	*q = quantity(strings.Trim(string(b), `"`))
	return nil
}

var suffixes = map[string]float64{
	"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50,
}

func (q quantity) number() (float64, error) {
	s := string(q)
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		i = len(s)
	}
	scale, known := suffixes[s[i:]]
	f, err := strconv.ParseFloat(s[:i], 64)
	if err != nil || !known {
		return 0, errs.New(errs.InvalidArgument, "quantity %q: write a number with m, k, M, G, Ki, Mi or Gi", s)
	}
	return f * scale, nil
}

// maxManifest is the largest file that is read, in bytes.
const maxManifest = 4 << 20

// readManifests reads the pods of a file of one or more documents. warnings name
// what was left out.
func readManifests(r io.Reader) (pods []*manifest, warnings []string, err error) {
	data, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > maxManifest {
		return nil, nil, errs.New(errs.ResourceExhausted, "the manifest has more than %d bytes", maxManifest)
	}
	for _, doc := range bytes.Split(append([]byte("\n"), data...), []byte("\n---")) {
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		m := &manifest{}
		if err := yaml.Unmarshal(doc, m); err != nil {
			return nil, nil, errs.New(errs.InvalidArgument, "manifest: %w", err)
		}
		if m.Kind != "Pod" || m.APIVersion != "v1" {
			return nil, nil, errs.New(errs.InvalidArgument, "manifest: a %s of %s cannot be run without a cluster: only kind Pod of apiVersion v1 can", cmp.Or(m.Kind, "document without kind"), cmp.Or(m.APIVersion, "no apiVersion"))
		}
		if err := yaml.UnmarshalStrict(doc, &manifest{}); err != nil {
			_, field, _ := strings.Cut(err.Error(), "json: ")
			warnings = append(warnings, fmt.Sprintf("pod %s: left out here: %s", m.Metadata.Name, cmp.Or(field, err.Error())))
		}
		if err := m.check(); err != nil {
			return nil, nil, fmt.Errorf("pod %s: %w", m.Metadata.Name, err)
		}
		pods = append(pods, m)
	}
	if len(pods) == 0 {
		err = errors.New("the manifest is empty")
	}
	return pods, warnings, err
}

// check refuses what would run otherwise than the manifest says.
func (m *manifest) check() error {
	bad := func(format string, args ...any) error { return errs.New(errs.InvalidArgument, format, args...) }
	if m.Metadata.Name == "" {
		return bad("metadata.name is missing")
	}
	if len(m.Spec.Containers) == 0 {
		return bad("spec.containers is empty")
	}
	volumes, names := map[string]bool{}, map[string]bool{}
	for _, v := range m.Spec.Volumes {
		if v.EmptyDir == nil && v.HostPath == nil {
			return bad("volume %s: without a cluster there are emptyDir and hostPath only", v.Name)
		}
		volumes[v.Name] = true
	}
	for _, c := range m.all() {
		switch {
		case c.Name == "" || c.Image == "":
			return bad("a container needs a name and an image")
		case names[c.Name]:
			return bad("two containers are called %s", c.Name)
		}
		names[c.Name] = true
		for _, v := range c.VolumeMounts {
			if !volumes[v.Name] {
				return bad("container %s mounts volume %s, which spec.volumes has not", c.Name, v.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.FieldRef == nil {
				return bad("container %s: env %s: without a cluster, valueFrom has fieldRef only", c.Name, e.Name)
			}
		}
	}
	return nil
}

func (m *manifest) all() []ctrSpec {
	return append(append([]ctrSpec{}, m.Spec.InitContainers...), m.Spec.Containers...)
}
