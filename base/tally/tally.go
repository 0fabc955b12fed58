// Package tally counts what happens, for whoever asks: numbers that cost an atomic
// addition each, and no more. It starts nothing and knows no names; server/debug
// gives them theirs.
package tally

import (
	"math"
	"sync/atomic"
	"time"
)

// Counter counts up.
type Counter struct{ n atomic.Uint64 }

// Add adds n.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Value is the sum so far.
func (c *Counter) Value() uint64 { return c.n.Load() }

// Gauge goes up and down.
type Gauge struct{ n atomic.Int64 }

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) { g.n.Add(n) }

// Value is the level now.
func (g *Gauge) Value() int64 { return g.n.Load() }

// Seconds are the upper bounds of Times' buckets.
var Seconds = [...]float64{0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60}

// Times is how long something took, each time it was done. The zero value counts.
type Times struct {
	buckets [len(Seconds) + 1]atomic.Uint64 // by the first bound that is not exceeded
	sum     atomic.Uint64                   // nanoseconds
}

// Since adds the time from start until now.
func (t *Times) Since(start time.Time) { t.Add(time.Since(start)) }

// Add adds one duration.
func (t *Times) Add(d time.Duration) {
	i, s := 0, d.Seconds()
	for i < len(Seconds) && s > Seconds[i] {
		i++
	}
	t.buckets[i].Add(1)
	t.sum.Add(uint64(max(d, 0)))
}

// Snapshot is what Times counted until one moment.
type Snapshot struct {
	Bounds []float64 // upper, seconds; the last is infinite
	Counts []uint64  // up to each bound, all that are lower included
	Count  uint64
	Sum    float64 // seconds
}

// Read takes a snapshot.
func (t *Times) Read() Snapshot {
	s := Snapshot{Sum: time.Duration(t.sum.Load()).Seconds()}
	for i := range t.buckets {
		s.Count += t.buckets[i].Load()
		bound := math.Inf(1)
		if i < len(Seconds) {
			bound = Seconds[i]
		}
		s.Bounds, s.Counts = append(s.Bounds, bound), append(s.Counts, s.Count)
	}
	return s
}
