package shim

import (
	"context"
	"syscall"

	"github.com/berthd/berth/host/oci"
)

// Runtime makes containers from bundles and changes them. All methods may be
// called concurrently, for one container one at a time, but Kill, Ps and Exec at
// any time. What a runtime starts becomes a child of this process, which is a
// subreaper, and is reaped by its reaper: a runtime waits for no container.
//
// Errors of kind NotFound say that the container or process is gone.
type Runtime interface {
	// Create makes a container whose first process waits for Start. If ctx ends
	// first, Delete with force takes back what was made.
	Create(ctx context.Context, c oci.Create) (oci.Started, error)
	// Run is Create and Start in one step.
	Run(ctx context.Context, c oci.Create) (oci.Started, error)
	// Restore makes a running container from a checkpoint.
	Restore(ctx context.Context, c oci.Create, from oci.Checkpoint) (oci.Started, error)
	// Start lets the first process go on.
	Start(ctx context.Context, id, bundle string) error
	// Exec starts one more process.
	Exec(ctx context.Context, e oci.Exec) (oci.Started, error)
	// Kill signals the first process, or all. A frozen container that is killed dies.
	Kill(ctx context.Context, t oci.Target, sig syscall.Signal, all bool) error
	// Pause freezes all processes, Resume thaws them.
	Pause(ctx context.Context, t oci.Target) error
	Resume(ctx context.Context, t oci.Target) error
	// Ps lists all processes.
	Ps(ctx context.Context, t oci.Target) ([]int, error)
	// Update sets limits, given as LinuxResources in JSON.
	Update(ctx context.Context, id, bundle string, resources []byte) error
	// Checkpoint writes the container's state into a directory.
	Checkpoint(ctx context.Context, id, bundle string, to oci.Checkpoint) error
	// Delete removes a container whose processes are dead; with force it kills
	// them. A container that is not there is no error.
	Delete(ctx context.Context, id, bundle string, force bool) error
	// Features is the OCI features document in JSON.
	Features(ctx context.Context) ([]byte, error)
}
