package podspec

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/host/apparmor"
	"github.com/berthd/berth/host/cdi"
	"github.com/berthd/berth/host/facts"
	"github.com/berthd/berth/host/seccomp"
)

// Probe asks this machine what it can give.
func Probe(log *slog.Logger) (Host, error) {
	var warned sync.Map
	h := Host{
		Cgroup2: facts.Cgroup2(), Swap: facts.MemorySwap(), Seccomp: seccomp.Supported(), AppArmor: apparmor.Enabled(), SELinux: facts.SELinux(),
		Device: facts.Device, Devices: facts.Devices, Propagation: facts.PropagationOf, AppArmorProfile: apparmor.Loaded, CDI: cdi.Inject,
		IsDir: func(p string) bool {
			st, err := os.Stat(p)
			return err == nil && st.IsDir()
		},
		Warn: func(key, text string) {
			if _, old := warned.LoadOrStore(key, true); !old {
				log.Warn(text)
			}
		},
	}
	var err error
	if h.Hostname, err = os.Hostname(); err != nil {
		return h, fmt.Errorf("look at the host: %w", err)
	}
	if h.Caps, err = facts.Caps(); err != nil {
		return h, fmt.Errorf("look at the host: capabilities: %w", err)
	}
	if h.OOMScoreAdj, err = facts.OOMScoreAdj(); err != nil {
		return h, fmt.Errorf("look at the host: OOM score: %w", err)
	}
	h.LowerOOM = slices.Contains(h.Caps, "CAP_SYS_RESOURCE")
	controllers, err := facts.Controllers()
	if err != nil {
		return h, fmt.Errorf("look at the host: cgroup controllers: %w", err)
	}
	h.Hugetlb = slices.Contains(controllers, "hugetlb")
	if h.HugepageSize, err = facts.HugepageSizes(); err != nil {
		return h, fmt.Errorf("look at the host: huge pages: %w", err)
	}
	var lim unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &lim); err != nil {
		return h, fmt.Errorf("look at the host: open files: %w", err)
	}
	h.HardNOFILE = lim.Max
	h.RDT = facts.RDT()
	return h, nil
}
