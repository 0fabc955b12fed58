package pod

import (
	"encoding/json"
	"maps"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/store"
)

// Annotations on a pod by which berth's own command line says what CRI has no
// field for. A kubelet never sets them.
const (
	annotationNetwork = "berth.dev/network"  // "none", or names of networks with commas
	annotationShmSize = "berth.dev/shm-size" // as tmpfs takes it
	annotationHosts   = "berth.dev/hosts"    // NAME:IP with commas
)

// Labels and extensions by which other tools know what is whose (protocols.md 3.4).
const (
	labelKind           = "io.cri-containerd.kind"
	extensionSandbox    = "io.cri-containerd.sandbox.metadata"
	extensionContainer  = "io.cri-containerd.container.metadata"
	typeSandboxMeta     = "github.com/containerd/cri/pkg/store/sandbox/Metadata"
	typeContainerMeta   = "github.com/containerd/cri/pkg/store/container/Metadata"
	metadataVersion     = "v1"
	maxLabelOfContainer = 4096
)

func noNetwork(c *cri.PodSandboxConfig) bool {
	return c.GetAnnotations()[annotationNetwork] == "none"
}

// labelsOf puts CRI's labels into a row, as far as rows take them: a label that is
// too long there stays in the config, where CRI reads it.
func labelsOf(kind string, all map[string]string) map[string]string {
	out := maps.Clone(all)
	if out == nil {
		out = map[string]string{}
	}
	maps.DeleteFunc(out, func(k, v string) bool { return len(k)+len(v) > maxLabelOfContainer })
	out[labelKind] = kind
	return out
}

func sandboxLabels(c *cri.PodSandboxConfig) map[string]string {
	return labelsOf("sandbox", c.GetLabels())
}

// extension is the form in which tools read metadata out of rows: a version and
// the metadata itself.
func extension(key, typ string, meta any) (map[string]store.Any, error) {
	b, err := json.Marshal(struct {
		Version  string
		Metadata any
	}{metadataVersion, meta})
	return map[string]store.Any{key: {TypeURL: typ, Value: b}}, err
}

func sandboxExtension(pod *Pod) (map[string]store.Any, error) {
	return extension(extensionSandbox, typeSandboxMeta, struct {
		ID, Name, RuntimeHandler string
		Config                   *cri.PodSandboxConfig
	}{pod.ID, pod.Name, pod.Handler, pod.Config})
}

func containerExtension(c *Container) (map[string]store.Any, error) {
	return extension(extensionContainer, typeContainerMeta, struct {
		ID, Name, SandboxID, ImageRef, LogPath string
		Config                                 *cri.ContainerConfig
	}{c.ID, c.Name, c.Pod, c.ImageID, c.LogPath, c.Config})
}
