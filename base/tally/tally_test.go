package tally

import (
	"math"
	"testing"
	"time"
)

func TestTimes(t *testing.T) {
	var x Times
	for _, d := range []time.Duration{0, 100 * time.Microsecond, 101 * time.Microsecond, time.Second, time.Hour} {
		x.Add(d)
	}
	s := x.Read()
	if s.Count != 5 || math.Abs(s.Sum-3601.000201) > 1e-9 || len(s.Bounds) != len(Seconds)+1 {
		t.Fatalf("%+v", s)
	}
	want := map[float64]uint64{0.0001: 2, 0.0005: 3, 0.5: 3, 1: 4, 60: 4, math.Inf(1): 5}
	for i, b := range s.Bounds {
		if n, ok := want[b]; ok && n != s.Counts[i] {
			t.Errorf("up to %g: %d, want %d", b, s.Counts[i], n)
		}
	}
}
