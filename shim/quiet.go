package shim

import (
	"runtime/debug"
	"sync"
	"time"
)

// How a shim keeps its memory small: the heap is collected early, and what a burst
// of work leaves behind is given back when the burst is over, once, not on a clock.
const (
	gcPercent  = 25
	quietAfter = 250 * time.Millisecond
)

// quiet gives memory back when work has stopped for a moment.
type quiet struct {
	mu    sync.Mutex
	timer *time.Timer
}

// work says that something was done that leaves garbage.
func (q *quiet) work() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.timer == nil {
		q.timer = time.AfterFunc(quietAfter, debug.FreeOSMemory)
		return
	}
	q.timer.Reset(quietAfter)
}
