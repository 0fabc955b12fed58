package podspec

import (
	"maps"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
)

// ipcSysctls belong to an IPC namespace (ipc_namespaces(7)), beside fs.mqueue.*.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
	"kernel.msg_next_id", "kernel.sem_next_id", "kernel.shm_next_id", "kernel.auto_msgmni",
}

// Defaults for pods with a network of their own: in it there is nothing that a low
// port or a raw echo could harm.
const (
	sysctlPorts, allPorts = "net.ipv4.ip_unprivileged_port_start", "0"
	sysctlPing, allGroups = "net.ipv4.ping_group_range", "0 2147483647"
)

// Sysctls are the kernel variables of a pod, by their names with dots: those asked
// for, and the defaults. One that is the host's and not the pod's is refused:
// setting it would change the host.
func Sysctls(s Settings, c *cri.PodSandboxConfig) (map[string]string, error) {
	asked := c.GetLinux().GetSysctls()
	out := map[string]string{}
	if !hostNetwork(c) {
		if s.UnprivilegedPorts {
			out[sysctlPorts] = allPorts
		}
		userns, err := UserNamespace(c)
		if err != nil {
			return nil, err
		}
		if s.UnprivilegedICMP && userns == nil { // the last group is not mapped in one
			out[sysctlPing] = allGroups
		}
	}
	for _, k := range slices.Sorted(maps.Keys(asked)) {
		name, err := sysctlName(k)
		if err != nil {
			return nil, err
		}
		if err := ownSysctl(name, c); err != nil {
			return nil, err
		}
		if strings.ContainsAny(asked[k], "\x00\n") {
			return nil, errs.New(errs.InvalidArgument, "sysctl %s: value %q holds a character that cannot be written", name, asked[k])
		}
		out[name] = asked[k]
	}
	return out, nil
}

// sysctlName checks a name and writes it with dots between its parts. As with
// sysctl(8) the first separator says which one is used, so that a part may hold the
// other: net/ipv4/conf/eth0.100/forwarding is net.ipv4.conf.eth0/100.forwarding.
func sysctlName(k string) (string, error) {
	name := k
	if i := strings.IndexAny(k, "./"); i >= 0 && k[i] == '/' {
		name = strings.Map(func(r rune) rune {
			switch r {
			case '/':
				return '.'
			case '.':
				return '/'
			}
			return r
		}, k)
	}
	parts := strings.Split(name, ".")
	for _, p := range parts {
		if p == "" || strings.Trim(p, "/") == "" || strings.ContainsAny(p, "\x00\n ") {
			return "", errs.New(errs.InvalidArgument, "sysctl %q is not a name of a kernel variable", k)
		}
	}
	if len(parts) < 2 {
		return "", errs.New(errs.InvalidArgument, "sysctl %q is not a name of a kernel variable", k)
	}
	return name, nil
}

// ownSysctl reports an error if a variable is not the pod's own.
func ownSysctl(name string, c *cri.PodSandboxConfig) error {
	switch {
	case strings.HasPrefix(name, "net."):
		if hostNetwork(c) {
			return errs.New(errs.InvalidArgument, "sysctl %s: the pod uses the network of the host", name)
		}
	case strings.HasPrefix(name, "fs.mqueue.") || slices.Contains(ipcSysctls, name):
		if nsOptions(c).GetIpc() == cri.NamespaceMode_NODE {
			return errs.New(errs.InvalidArgument, "sysctl %s: the pod uses the IPC namespace of the host", name)
		}
	case name == "kernel.domainname":
		if hostNetwork(c) {
			return errs.New(errs.InvalidArgument, "sysctl %s: the pod uses the UTS namespace of the host", name)
		}
	default:
		return errs.New(errs.InvalidArgument, "sysctl %s belongs to no namespace: it would change the host", name)
	}
	return nil
}
