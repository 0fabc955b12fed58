// Package seccomp turns seccomp profiles into the filter of an OCI spec: the
// default one for a set of capabilities, or one that somebody wrote. It reads what
// this kernel can; it loads no filter.
package seccomp

import (
	"io"
	"os"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// MaxProfile is how many bytes a profile may have.
const MaxProfile = 4 << 20

// Supported reports whether the kernel has seccomp filters.
var Supported = sync.OnceValue(func() bool {
	_, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail")
	return err == nil
})

// Default is the filter for a container that has these capabilities at most.
func Default(caps []string) (*specs.LinuxSeccomp, error) {
	return seccomp.GetDefaultProfile(withCaps(caps))
}

// Parse reads a profile in Docker's format, which is the runtime spec's with
// conditions. A profile that filters nothing is an error: who names one expects to
// be confined by it (CVE-2023-2431).
func Parse(text []byte, caps []string) (*specs.LinuxSeccomp, error) {
	if len(text) > MaxProfile {
		return nil, errs.New(errs.InvalidArgument, "the seccomp profile has %d bytes, at most %d are taken", len(text), MaxProfile)
	}
	if strings.TrimSpace(string(text)) == "" {
		return nil, errs.New(errs.InvalidArgument, "the seccomp profile is empty")
	}
	p, err := seccomp.LoadProfile(string(text), withCaps(caps))
	if err != nil {
		return nil, errs.New(errs.InvalidArgument, "the seccomp profile is not valid: %w", err)
	}
	if p == nil || p.DefaultAction == "" {
		return nil, errs.New(errs.InvalidArgument, "the seccomp profile has no defaultAction")
	}
	return p, nil
}

// Read reads the text of a profile from a file.
func Read(file string) ([]byte, error) {
	// Not blocking: a FIFO in its place would hold the caller for ever.
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, errs.New(errs.InvalidArgument, "the seccomp profile cannot be read: %w", err)
	}
	defer f.Close() // only read from
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > MaxProfile {
		return nil, errs.New(errs.InvalidArgument, "the seccomp profile %s is no file of at most %d bytes", file, MaxProfile)
	}
	return io.ReadAll(io.LimitReader(f, MaxProfile))
}

func withCaps(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
}
