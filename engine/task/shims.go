package task

import (
	"context"
	"errors"
	"sync"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/shim"
)

// Shims keeps one connection to each shim, for all that use it: containers of one
// group, and the sandbox they are in. It owns one goroutine per shim, which
// notices its death.
type Shims struct {
	mu     sync.Mutex
	conns  map[string]*pooled // by address
	closed bool
	wg     sync.WaitGroup
}

type pooled struct {
	conn *shim.Conn
	uses map[*Use]struct{}
}

// Use is one user's share of a connection.
type Use struct {
	Conn *shim.Conn
	lost func()
}

// NewShims returns a pool without connections.
func NewShims() *Shims { return &Shims{conns: map[string]*pooled{}} }

// Connect returns a share of the connection to a shim. lost is called, once and
// in a goroutine of the pool, if the shim dies before Release.
func (s *Shims) Connect(ctx context.Context, b shim.Bootstrap, lost func()) (*Use, error) {
	if u := s.share(b.Address, lost); u != nil {
		return u, nil
	}
	c, err := shim.Connect(ctx, b)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(c.Close(), errs.New(errs.Unavailable, "the daemon is stopping"))
	}
	p := s.conns[b.Address]
	if p != nil { // somebody else was quicker
		err = c.Close()
	} else {
		p = &pooled{conn: c, uses: map[*Use]struct{}{}}
		s.conns[b.Address] = p
		s.wg.Add(1)
		// owner: Close waits for it through wg; it ends with the connection.
		go s.watch(b.Address, p)
	}
	u := &Use{p.conn, lost}
	p.uses[u] = struct{}{}
	return u, err
}

func (s *Shims) share(address string, lost func()) *Use {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.conns[address]
	if p == nil {
		return nil
	}
	u := &Use{p.conn, lost}
	p.uses[u] = struct{}{}
	return u
}

// Release gives up a share; the last closes the connection. It reports whether it
// was the last, as is each share of a shim that is dead.
func (s *Shims) Release(u *Use) (last bool, err error) {
	if !s.leave(u) {
		return false, nil
	}
	return true, u.Conn.Close()
}

// leave gives up a share and leaves the connection open. After the last the caller
// closes it; nobody else gets it any more.
func (s *Shims) leave(u *Use) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	address := u.Conn.Bootstrap().Address
	p := s.conns[address]
	if p == nil || p.conn != u.Conn {
		return true // it was lost already
	}
	if delete(p.uses, u); len(p.uses) > 0 {
		return false
	}
	delete(s.conns, address)
	return true
}

// watch waits for the end of a connection. An end that nobody asked for means
// that the shim died.
func (s *Shims) watch(address string, p *pooled) {
	defer s.wg.Done()
	<-p.conn.Done()
	s.mu.Lock()
	if s.closed || s.conns[address] != p {
		s.mu.Unlock()
		return
	}
	delete(s.conns, address)
	uses := p.uses
	s.mu.Unlock()
	for u := range uses {
		u.lost()
	}
}

// Close ends all connections, leaves the shims running and waits for what the
// deaths of shims had started.
func (s *Shims) Close() error {
	s.mu.Lock()
	s.closed = true
	var all []error
	for _, p := range s.conns {
		all = append(all, p.conn.Close())
	}
	s.mu.Unlock()
	s.wg.Wait()
	return errors.Join(all...)
}
