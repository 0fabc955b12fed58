package pod

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/engine/podspec"
)

// signals are CRI's numbers of stop signals, by the kernel's. Of two names for one
// signal the first of CRI counts.
var signals = func() map[int]cri.Signal {
	out := map[int]cri.Signal{}
	for n := cri.Signal(len(cri.Signal_name) - 1); n > 0; n-- {
		if sig, err := podspec.StopSignal(&cri.ContainerConfig{StopSignal: n}, ""); err == nil {
			out[int(sig)] = n
		}
	}
	return out
}()

// CRISignal is what stops the container, in CRI's numbers.
func (c *Container) CRISignal() cri.Signal {
	if s := c.Config.GetStopSignal(); s != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		return s
	}
	return signals[c.StopSignal]
}
