// Package oci has the nouns of an OCI runtime: what is asked of one to create,
// start, change and end a container, whatever the runtime is. Plain values only.
package oci

import (
	"os"

	"github.com/berthd/berth/host/cgroup"
	"github.com/berthd/berth/host/child"
)

// Stdio is what a process gets as its first three files; nil is /dev/null. With a
// terminal all are nil.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}

// Create describes a container that is to be made from a bundle.
type Create struct {
	ID       string
	Bundle   string // absolute directory with config.json
	Terminal bool   // as process.terminal of config.json
	Stdio    Stdio
}

// Exec describes one more process for a container.
type Exec struct {
	ID       string // of the container
	ExecID   string // names files in the bundle; an identifier
	Bundle   string
	Process  []byte // OCI process as JSON
	Terminal bool
	Stdio    Stdio
	More     []string // arguments that only this runtime knows
}

// Started is what came of it.
type Started struct {
	Pid int
	// Console is the terminal's master, not blocking, if a terminal was asked for.
	Console *os.File
	// Exit tells the end of a process that is none of this machine's, as one in the
	// kernel of a sandbox; Pid is the sandbox's then. Nil for our own child.
	Exit <-chan child.Exit
}

// Target is a container whose processes are to be signalled, listed or frozen.
type Target struct {
	ID string
	// ExecID says that only this exec is meant, whose pid and pidfd are given.
	ExecID string
	Pid    int
	PidFD  *os.File      // of the first process; nil if it had died before
	Group  *cgroup.Group // nil if it has none of its own
	// SharesPIDs says that it has no pid namespace of its own, so that the kernel
	// does not kill the others when the first process dies.
	SharesPIDs bool
}

// Checkpoint says where and how a container's state is written or read.
type Checkpoint struct {
	ImagePath           string
	WorkPath            string
	ParentPath          string
	LeaveRunning        bool
	OpenTCP             bool
	ExternalUnixSockets bool
	ShellJob            bool
	FileLocks           bool
	EmptyNamespaces     []string
	CgroupsMode         string
}
