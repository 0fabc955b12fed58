package pod

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// stages say what is being done to each pod and container that somebody holds, for
// those who wait for it.
type stages struct {
	mu  sync.Mutex
	all map[string]stage
}

type stage struct {
	what  string
	since time.Time
}

func (s *stages) set(key, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string]stage{}
	}
	s.all[key] = stage{what, time.Now()}
}

func (s *stages) clear(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, key)
}

func (s *stages) of(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, ok := s.all[key]
	if !ok {
		return "another change of it is under way"
	}
	return fmt.Sprintf("another change of it is under way: %s, for %s", st.what, time.Since(st.since).Round(time.Millisecond))
}

// held is a pod or container that nobody else changes meanwhile.
type held struct {
	p      *Pods
	key    string
	unlock func()
}

// hold waits for the sole right to change a pod or a container; the kind is one of
// these words. Who waits in vain is told what the other one is doing.
func (p *Pods) hold(ctx context.Context, kind, ns, id, what string) (held, error) {
	key := kind + "/" + ns + "/" + id
	unlock, err := p.locks.Lock(ctx, key)
	if err != nil {
		return held{}, fmt.Errorf("%s %s %s: %s: %w", what, kind, id, p.stages.of(key), err)
	}
	p.stages.set(key, what)
	return held{p, key, unlock}, nil
}

func (h held) release() {
	h.p.stages.clear(h.key)
	h.unlock()
}

// stageOf notes what is being done to a pod that the caller's caller holds.
func (p *Pods) stageOf(pod *Pod, what string) {
	p.stages.set("pod/"+pod.Namespace+"/"+pod.ID, what)
}
