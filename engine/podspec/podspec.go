// Package podspec translates: what CRI asks for a pod's container, what its image
// says and what this host can give become an OCI runtime spec. It is a function of
// its arguments. What must be looked up at the moment of asking (devices, mounts)
// is looked up by the functions of Host; nothing is ever changed.
package podspec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/host/facts"
	"github.com/berthd/berth/host/userdb"
)

// Host is what this machine and this daemon can give to containers. See Probe.
type Host struct {
	Hostname     string
	Caps         []string // CAP_…: what the daemon has; "all" never means more
	OOMScoreAdj  int      // the daemon's own
	LowerOOM     bool     // it may give a container a lower one (CAP_SYS_RESOURCE)
	HardNOFILE   uint64   // its own hard limit of open files
	Cgroup2      bool     // controllers are in the unified hierarchy
	Hugetlb      bool     // there is a hugetlb controller
	HugepageSize []string // page sizes of the kernel: 2MB, 1GB
	Swap         bool     // the memory controller accounts swap
	Seccomp      bool     // the kernel filters system calls
	AppArmor     bool
	SELinux      bool

	// Device describes a device node, Devices all below a directory.
	Device  func(path string) (specs.LinuxDevice, error)
	Devices func(dir string) ([]specs.LinuxDevice, error)
	// IsDir reports whether a path of the host is a directory.
	IsDir func(path string) bool
	// Propagation looks at the mount that holds a path.
	Propagation func(path string) (facts.Propagation, error)
	// AppArmorProfile reports whether a profile is loaded; the default one is then.
	AppArmorProfile func(name string) (bool, error)
	// CDI applies devices of the Container Device Interface.
	CDI func(s *specs.Spec, dirs, names []string) error
	// RDT reports whether a class of resctrl exists; nil: RDT is not enabled.
	RDT func(class string) bool
	// BlockIO gives the parameters of a class; nil: block I/O classes are not configured.
	BlockIO func(class string) (*specs.LinuxBlockIO, error)
	// Warn tells the administrator of something once; the key tells warnings apart.
	Warn func(key, text string)
}

// Settings are what the configuration says for all runtime handlers: the keys of
// containerd's CRI runtime section that concern specs.
type Settings struct {
	UnsetSeccomp          string // for containers that name no profile: "", RuntimeDefault, unconfined, or a file
	DisableAppArmor       bool
	SELinux               bool // enable_selinux
	SELinuxCategories     int  // selinux_category_range
	RestrictOOMScoreAdj   bool
	DisableProcMount      bool // masked and read-only paths are the default ones
	TolerateNoHugetlb     bool
	DisableHugetlb        bool
	DeviceOwnership       bool // devices belong to the container's user
	UnprivilegedPorts     bool
	UnprivilegedICMP      bool
	CDI                   bool
	CDIDirs               []string
	IgnoreRDTDisabled     bool
	IgnoreBlockIODisabled bool
	Rlimits               []specs.POSIXRlimit // of containers; a hard limit above the daemon's is lowered
}

// DefaultSettings are containerd's defaults.
func DefaultSettings() Settings {
	return Settings{
		SELinuxCategories: 1024, TolerateNoHugetlb: true, DisableHugetlb: true, UnprivilegedPorts: true, UnprivilegedICMP: true,
		CDI: true, CDIDirs: []string{"/etc/cdi", "/var/run/cdi"},
	}
}

// Handler is what the configuration says for one runtime handler.
type Handler struct {
	Settings             Settings
	SystemdCgroup        bool
	PodAnnotations       []string // patterns of annotations that go into the spec
	ContainerAnnotations []string
	// NoHostDevices keeps the host's devices out of privileged containers.
	NoHostDevices bool
	// AllowAllDevices lets such a container use whatever device it makes.
	AllowAllDevices bool
	CgroupWritable  bool
	BaseSpec        *specs.Spec // the spec to start from, or nil for the built-in one
	// What the runtime can do, from its features document.
	IDMap             bool // mounts with ids mapped
	RecursiveReadOnly bool
	// Sandboxed: containers run in a kernel of their own, which sees the pod's
	// namespaces only by the sandbox container.
	Sandboxed bool
}

// Pod is the pod as its containers see it. Paths are of the host; "" where the pod
// has the host's or none.
type Pod struct {
	ID                  string
	Config              *cri.PodSandboxConfig
	Net, IPC, UTS, User string // pinned namespaces
	InfraPID            int    // whose PID namespace is shared; 0 if there is none
	Hosts               string // files for /etc
	Hostname            string
	ResolvConf          string
	Shm                 string // directory for /dev/shm
	Name                string // hostname of the pod
	MCS                 string // SELinux level given to the pod, or "" to derive it from the id
}

// Container is what there is to know of one container.
type Container struct {
	ID        string
	Config    *cri.ContainerConfig
	Image     ocispec.ImageConfig
	ImageName string // as the user wrote it
	User      userdb.User
	// Volumes are the host directories of volumes that the image defines, by their
	// paths in the container.
	Volumes map[string]string
	// Sources are where mounts come from if that is not their host_path: image
	// mounts, links resolved. The key is the container_path as the config has it.
	Sources   map[string]string
	Seccomp   []byte // text of the profile that SeccompFile named
	TargetPID int    // whose PID namespace is joined (namespace mode TARGET)
}

// warn tells the administrator, if anybody listens.
func (h Host) warn(key, text string) {
	if h.Warn != nil {
		h.Warn(key, text)
	}
}
