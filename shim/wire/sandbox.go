package wire

import "time"

// The messages of containerd.runtime.sandbox.v1 that a shim reads and writes.

// Sandbox is every request that names a sandbox first: field 2 is the bundle of
// CreateSandboxRequest, the timeout of StopSandboxRequest, and verbose elsewhere.
type Sandbox struct {
	ID      string
	Bundle  string
	Timeout uint32 // seconds
}

// Decode reads r from b.
func (r *Sandbox) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch {
		case f.num == 1:
			return f.text(&r.ID)
		case f.num == 2 && f.kind == kindBytes:
			return f.text(&r.Bundle)
		case f.num == 2:
			return f.uint32(&r.Timeout)
		}
		return nil
	})
}

// SandboxStarted is StartSandboxResponse.
type SandboxStarted struct {
	Pid uint32
	At  time.Time
}

// Append writes s behind b.
func (s *SandboxStarted) Append(b []byte) []byte {
	return putTime(putUint(b, 1, uint64(s.Pid)), 2, s.At)
}

// Platform is PlatformResponse.
type Platform struct{ OS, Architecture string }

// Append writes p behind b.
func (p *Platform) Append(b []byte) []byte {
	return putNested(b, 1, func(b []byte) []byte { return putText(putText(b, 1, p.OS), 2, p.Architecture) })
}

// SandboxStatus is SandboxStatusResponse.
type SandboxStatus struct {
	ID        string
	Pid       uint32
	State     string
	CreatedAt time.Time
	ExitedAt  time.Time
}

// Append writes s behind b.
func (s *SandboxStatus) Append(b []byte) []byte {
	b = putText(putUint(putText(b, 1, s.ID), 2, uint64(s.Pid)), 3, s.State)
	b = putTime(b, 5, s.CreatedAt)
	if !s.ExitedAt.IsZero() {
		b = putTime(b, 6, s.ExitedAt)
	}
	return b
}
