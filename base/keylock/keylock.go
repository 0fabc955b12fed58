// Package keylock gives one lock per key: work on different things goes on at
// once, work on one thing waits its turn.
package keylock

import (
	"context"
	"sync"
)

// Map holds the locks that are in use; the zero value is ready.
type Map struct {
	mu    sync.Mutex
	locks map[string]*entry
}

type entry struct {
	turn chan struct{} // holds one token when free
	refs int
}

// Lock waits for the key's lock or for ctx. The returned function unlocks; it
// must be called once.
func (m *Map) Lock(ctx context.Context, key string) (unlock func(), err error) {
	m.mu.Lock()
	if m.locks == nil {
		m.locks = map[string]*entry{}
	}
	e := m.locks[key]
	if e == nil {
		e = &entry{turn: make(chan struct{}, 1)}
		e.turn <- struct{}{}
		m.locks[key] = e
	}
	e.refs++
	m.mu.Unlock()

	select {
	case <-e.turn:
		return func() { e.turn <- struct{}{}; m.drop(key, e) }, nil
	case <-ctx.Done():
		m.drop(key, e)
		return nil, context.Cause(ctx)
	}
}

// TryLock takes the key's lock only if it is free now.
func (m *Map) TryLock(key string) (unlock func(), ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locks[key] != nil {
		return nil, false
	}
	if m.locks == nil {
		m.locks = map[string]*entry{}
	}
	e := &entry{turn: make(chan struct{}, 1), refs: 1}
	m.locks[key] = e
	return func() { e.turn <- struct{}{}; m.drop(key, e) }, true
}

func (m *Map) drop(key string, e *entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.refs--; e.refs == 0 {
		delete(m.locks, key)
	}
}
