// Package cni attaches pods to networks by the Container Network Interface: it reads
// the folder of network configurations and follows its changes, chooses the networks
// of a pod, and has plugins do, check and undo the attachment.
//
// It owns the choice and the calls, and no state: all that a later DEL needs is in
// the Saved value that the caller keeps in its row before the ADD. It never changes
// a plugin's files itself, and never breaks on a bad configuration file, which
// is named in the status while the others go on.
package cni

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/berthd/berth/host/cni/builtin"
)

// Config is how networks are found and plugins run.
type Config struct {
	Dir     string        // of the configuration files
	Most    int           // networks that a pod gets by default, in the order of file names; 0: all
	BinDirs []string      // of plugins, in the order of search
	Limit   time.Duration // of one plugin's run; 0: 90 s
	// Builtin lets this process do what well-known plugins do.
	Builtin bool
	Owner   Owner
	// NetNS says where a pod's network namespace is pinned, by its id, for leftovers;
	// nil: unknown.
	NetNS func(id string) string
	Log   *slog.Logger
}

// limit is below the two minutes that a kubelet waits for an answer, so that it gets
// to see which plugin hangs.
const limit = 90 * time.Second

// Networks is a folder of network configurations.
type Networks struct {
	cfg Config
	run runner
	own *builtin.Plugins // nil: every plugin is a program
	mu  struct {
		sync.RWMutex
		folder folder
	}
	busy  sync.RWMutex // held for reading by ADD, DEL and CHECK, for writing by GC
	asked asked        // the last STATUS
	stock stock        // programs that were looked at
}

// folder is what was last read of the configuration folder.
type folder struct {
	networks []*network        // by file name
	broken   map[string]error  // files that are no configuration, by name
	err      error             // the folder itself cannot be read
	since    time.Time         // of the present trouble
	trouble  string            // its text, to tell whether it is the same
	stamps   map[string]string // what told the files apart
}

// network is one configuration file.
type network struct {
	file string
	list *libcni.NetworkConfigList
	raw  []byte // the list in one piece, with plugins that had files of their own
}

// New reads the folder. That it is missing, empty or broken is no error: see Condition.
func New(cfg Config) *Networks {
	if cfg.Limit <= 0 {
		cfg.Limit = limit
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if dir, err := filepath.Abs(cfg.Dir); err == nil {
		cfg.Dir = dir
	}
	n := &Networks{cfg: cfg}
	n.run = runner{dirs: cfg.BinDirs, limit: cfg.Limit}
	if cfg.Builtin {
		n.own = builtin.New()
	}
	n.reload()
	return n
}

// Close closes what is kept open between calls; nothing may be called after it.
func (n *Networks) Close() error {
	if n.own != nil {
		n.own.Close()
	}
	return nil
}

// Run follows the changes of the folder until ctx ends.
func (n *Networks) Run(ctx context.Context) error { return n.follow(ctx) }

// current returns the folder as last read. When there is nothing to use in it, it
// looks once more: the event of a change may be still on its way.
func (n *Networks) current() folder {
	n.mu.RLock()
	f := n.mu.folder
	n.mu.RUnlock()
	if len(f.networks) == 0 {
		n.reload()
		n.mu.RLock()
		f = n.mu.folder
		n.mu.RUnlock()
	}
	return f
}

// defaults are the networks of a pod that asks for none by name.
func (n *Networks) defaults(f folder) []*network {
	if n.cfg.Most > 0 && len(f.networks) > n.cfg.Most {
		return f.networks[:n.cfg.Most]
	}
	return f.networks
}
