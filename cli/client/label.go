package client

import (
	"context"
	"slices"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"

	"github.com/berthd/berth/base/label"
)

// Labels by which the command line keeps what containerd's API has no field for;
// those of base/label the daemon obeys.
const (
	LabelName       = "berth.dev/name"         // as people call it
	LabelDir        = label.Dir                // log, hosts, hostname and resolv.conf
	LabelLog        = "berth.dev/log"          // address of stdout and stderr for the shim
	LabelStdin      = label.Stdin              // address of stdin for the shim
	LabelAutoRemove = label.AutoRemove         // the daemon removes it when it has ended
	LabelStopSignal = "berth.dev/stop-signal"  // a name or number
	LabelStopTime   = "berth.dev/stop-timeout" // seconds
	LabelNetwork    = "berth.dev/network"      // host, none, or names
	LabelPod        = label.Pod                // id of the pod that is its network
	LabelPorts      = "berth.dev/ports"        // as -p has them, with commas
	LabelIPs        = "berth.dev/ips"          // with commas
	LabelPlatform   = "berth.dev/platform"     // of the image, where one was asked for

	LabelRestartStatus  = label.RestartStatus
	LabelRestartPolicy  = label.RestartPolicy
	LabelRestartCount   = label.RestartCount
	LabelRestartStopped = label.RestartStopped
	LabelRestartLog     = label.RestartLog
)

// NameLabels are the labels under which berth, nerdctl and CRI keep a name.
var NameLabels = []string{LabelName, "nerdctl/name", "io.kubernetes.container.name"}

// DisplayName is what a container is called in lists and messages.
func DisplayName(k *containersapi.Container) string {
	for _, l := range NameLabels {
		if n := k.GetLabels()[l]; n != "" {
			return n
		}
	}
	return k.GetID()
}

// ShortID cuts ids that are made of 64 digits.
func ShortID(id string) string {
	if len(id) == 64 {
		return id[:12]
	}
	return id
}

// OtherNamespaces lists the namespaces but the client's own, for hints only.
func (c *Client) OtherNamespaces(ctx context.Context) []string {
	l, err := c.Namespaces().List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range l.GetNamespaces() {
		if n.GetName() != c.Namespace {
			out = append(out, n.GetName())
		}
	}
	slices.Sort(out)
	return out
}
