package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// series are the values of one thing on one side, in the unit that its row names.
type series []float64

func (s series) median() float64 {
	if len(s) == 0 {
		return 0
	}
	c := slices.Sorted(slices.Values(s))
	if n := len(c); n%2 == 0 {
		return (c[n/2-1] + c[n/2]) / 2
	}
	return c[len(c)/2]
}

// quantile is the value that a share q of all do not exceed.
func (s series) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	c := slices.Sorted(slices.Values(s))
	return c[min(len(c)-1, int(q*float64(len(c))))]
}

func (s series) String() string {
	if len(s) == 0 {
		return "–"
	}
	if len(s) == 1 {
		return number(s[0])
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.median()), number(slices.Min(s)), number(slices.Max(s)))
}

func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// row is one thing measured on both sides.
type row struct {
	what  string // with its unit
	berth series
	peer  series
}

// table prints rows; the ratio is berth's median by the peer's: less is better.
func table(title string, rows []row) {
	fmt.Printf("### %s\n\n| | berth | containerd | ratio | runs |\n|---|---|---|---|---|\n", title)
	for _, r := range rows {
		ratio := "–"
		if len(r.berth) > 0 && len(r.peer) > 0 && r.peer.median() > 0 {
			ratio = fmt.Sprintf("**%.2f**", r.berth.median()/r.peer.median())
		}
		fmt.Printf("| %s | %s | %s | %s | %d |\n", r.what, r.berth, r.peer, ratio, max(len(r.berth), len(r.peer)))
	}
	fmt.Println()
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, strings.TrimSuffix(format, "\n")+"\n", args...)
}
