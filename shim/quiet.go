package shim

import (
	"sync"
	"time"

	"github.com/berthd/berth/host/memory"
)

// How a shim keeps its memory small: the heap is collected early, and what a burst
// of work leaves behind is given back when the burst is over, once, not on a clock.
const (
	gcPercent  = 25
	quietAfter = 250 * time.Millisecond
	// stillAfter is when the runtime too has cleared up behind that.
	stillAfter = time.Second
)

// quiet gives memory back when work has stopped for a moment.
type quiet struct {
	mu    sync.Mutex
	timer *time.Timer
	still bool // the heap is trimmed, what remains is the program's own pages
}

// work says that something was done that leaves garbage.
func (q *quiet) work() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.still = false
	if q.timer == nil {
		q.timer = time.AfterFunc(quietAfter, q.rest)
		return
	}
	q.timer.Reset(quietAfter)
}

func (q *quiet) rest() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.still {
		memory.Unmap()
		return
	}
	memory.Trim()
	q.still = true
	q.timer.Reset(stillAfter)
}
