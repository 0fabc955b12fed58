// Package shim is the program that outlives the daemon: the parent of containers'
// processes. It owns the processes, their streams and log files, the mounts of
// their root file systems, and the files it puts into their bundles. It never
// opens the daemon's database and never touches images or networks. Its interface
// is containerd's task service (versions 2 and 3) and a small service of our own;
// docs/design/shim.md has the whole picture.
package shim

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/child"
	"github.com/berthd/berth/shim/ttrpc"
)

// Config is what a shim is made of.
type Config struct {
	Namespace    string
	Version      string
	Bundle       string // of the container that it was started for
	EventAddress string // path of the daemon's event socket; "" sends no events
	// Runtime makes the runtime for a container.
	Runtime func(s settings, bundle string) Runtime
	Mounter Mounter
	Reaper  *child.Reaper
	Log     func(message string)
}

// Shim serves the containers of one group.
type Shim struct {
	config   Config
	reaper   *child.Reaper
	log      func(string)
	events   *publisher
	quiet    quiet
	starting chan struct{} // execs on their way
	ended    chan struct{}
	endOnce  func()
	deaf     func() // stops listening

	mu         sync.Mutex
	containers map[string]*container
	sandbox    *sandbox    // nil if this shim holds none
	served     bool        // has had a container
	conns      int         // clients that are connected
	lonely     *time.Timer // runs while there is neither a container nor a client
}

// New returns a shim without containers.
func New(c Config) *Shim {
	s := &Shim{
		config: c, reaper: c.Reaper, log: c.Log, events: newPublisher(c.EventAddress, c.Namespace, c.Log),
		starting: make(chan struct{}, maxStarting), ended: make(chan struct{}), containers: map[string]*container{},
		deaf: func() {},
	}
	// Deaf first: once an end is answered nobody may join a shim that ends, and a kill
	// from then on leaves no socket behind.
	s.endOnce = sync.OnceFunc(func() { s.deaf(); close(s.ended) })
	return s
}

// lastEvents is how long a shim that ends tries to get rid of its events.
const lastEvents = 3 * time.Second

// Serve answers the connections of l until the shim is shut down or forgotten.
func (s *Shim) Serve(l ttrpc.Accepter, stopListening func()) error {
	s.mu.Lock()
	s.deaf = sync.OnceFunc(stopListening)
	s.mu.Unlock()
	server := &ttrpc.Server{Find: s.find, Edge: s.edge, Panicked: func(trace []byte) { s.log(string(trace)) }}
	var wg sync.WaitGroup
	wg.Add(2)
	failed := make(chan error, 1)
	// owner: Serve waits for it
	go func() { defer wg.Done(); s.events.run() }()
	// owner: Serve waits for it
	go func() {
		defer wg.Done()
		if err := server.Serve(context.Background(), l); err != nil {
			failed <- err
		}
	}()
	s.edge(0, 0)
	var err error
	select {
	case <-s.ended:
		// Whoever asked us to end reads the answer before the connection ends.
		time.Sleep(lastAnswer)
	case err = <-failed:
	}
	s.deaf()
	server.Close()
	s.events.close(lastEvents)
	wg.Wait()
	return err
}

// lastAnswer is how long the answer to Shutdown may take to leave.
const lastAnswer = 10 * time.Millisecond

// put registers a new container.
func (s *Shim) put(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
		return errs.New(errs.Unavailable, "the shim is ending")
	default:
	}
	if s.containers[c.id] != nil {
		return errs.New(errs.AlreadyExists, "container %s exists", c.id)
	}
	s.containers[c.id] = c
	s.served = true
	s.watchLoneliness()
	return nil
}

func (s *Shim) remove(c *container) {
	c.mu.Lock()
	c.deleted = true
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
	s.watchLoneliness()
}

func (s *Shim) get(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, errs.New(errs.NotFound, "container %.80s does not exist", id)
}

func (s *Shim) all() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		out = append(out, c)
	}
	return out
}

// How long a shim that has no container and no client waits for one: a daemon that
// dies between two calls must not leave it behind for ever.
const (
	newAlone = time.Minute
	oldAlone = 10 * time.Second
	// A shim that has had no container looks so often whether its bundle is there:
	// without it nobody will come.
	bundlePoll = time.Second
)

// edge is told of every call and connection.
func (s *Shim) edge(_, conns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if conns > s.conns {
		s.events.retry() // the daemon is back
	}
	s.conns = conns
	s.watchLoneliness()
}

// watchLoneliness starts or stops the clock; s.mu is held.
func (s *Shim) watchLoneliness() {
	alone := s.conns == 0 && len(s.containers) == 0 && (s.sandbox == nil || !s.bundleThere())
	switch {
	case !alone && s.lonely != nil:
		s.lonely.Stop()
		s.lonely = nil
	case alone && s.lonely == nil:
		after, tries := bundlePoll, int(newAlone/bundlePoll)
		if s.served {
			after, tries = oldAlone, 1
		}
		var t *time.Timer
		t = time.AfterFunc(after, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.lonely != t {
				return
			}
			if tries--; tries > 0 && s.bundleThere() {
				t.Reset(after)
				return
			}
			s.endOnce()
		})
		s.lonely = t
	}
}

func (s *Shim) bundleThere() bool {
	_, err := os.Stat(s.config.Bundle)
	return s.config.Bundle == "" || err == nil
}

// pidfdOpen opens a pidfd that is not inherited (pidfd_open(2)).
func pidfdOpen(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, errors.New("process is gone")
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}
