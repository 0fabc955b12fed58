// Package progress shows how far the parts of a transfer are: bars with speeds that
// are redrawn in place on a terminal, and one line for each change otherwise. It
// owns nothing but the lines that it prints.
package progress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// Event tells how far one part is. Parts without a total are announcements.
type Event struct {
	Name   string // of the part: a digest, or the whole's name
	Status string // "downloading", "complete", …
	Done   int64  // bytes
	Total  int64  // bytes
	Quiet  bool   // a part that is not worth a line, as manifests are not
}

// part is one line.
type part struct {
	Event
	begun time.Time // when the present status began
	from  int64     // bytes done by then
	last  time.Time
}

// Show is the state of one transfer's display. Tell and Close may be called from
// any goroutine.
type Show struct {
	w        io.Writer
	terminal bool
	size     func() (columns, rows int)
	now      func() time.Time

	mu     sync.Mutex
	parts  []*part
	byName map[string]*part
	drawn  int // lines on the screen
	redraw time.Time
	said   map[string]string
}

// New shows on w. For a terminal, size tells its size; nil means plain lines.
func New(w io.Writer, size func() (columns, rows int)) *Show {
	return &Show{w: w, terminal: size != nil, size: size, now: time.Now, byName: map[string]*part{}, said: map[string]string{}}
}

// interval is the shortest time between two pictures.
const interval = 80 * time.Millisecond

// Tell takes an event.
func (s *Show) Tell(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if e.Total == 0 && e.Done == 0 {
		s.say(e)
		return
	}
	p := s.byName[e.Name]
	if p == nil {
		p = &part{}
		s.byName[e.Name] = p
		s.parts = append(s.parts, p)
	}
	if p.Status != e.Status {
		p.begun, p.from = now, e.Done
	}
	changed := p.Status != e.Status
	p.Event, p.last = e, now
	switch {
	case !s.terminal:
		if changed && !e.Quiet && e.Status != "waiting" {
			fmt.Fprintf(s.w, "%s: %s%s\n", Short(e.Name), e.Status, sizeOf(e))
		}
	case changed || now.Sub(s.redraw) >= interval:
		s.draw(now)
	}
}

func sizeOf(e Event) string {
	if e.Total > 0 {
		return " " + size(e.Total)
	}
	return ""
}

// say prints an announcement once.
func (s *Show) say(e Event) {
	if s.said[e.Name] == e.Status || e.Quiet {
		return
	}
	s.said[e.Name] = e.Status
	s.erase()
	fmt.Fprintf(s.w, "%s: %s\n", e.Name, e.Status)
	if s.terminal {
		s.draw(s.now())
	}
}

// erase takes the picture off the screen; the cursor is where its first line was.
func (s *Show) erase() {
	if s.terminal && s.drawn > 0 {
		fmt.Fprintf(s.w, "\x1b[%dA\x1b[J", s.drawn)
	}
	s.drawn = 0
}

// draw prints the picture over the one before, in one write.
func (s *Show) draw(now time.Time) {
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.drawn)
	}
	columns, rows := s.size()
	visible, hidden := s.visible(max(rows-2, 3))
	lines := 0
	for _, p := range visible {
		b.WriteString(p.line(max(columns, 40)-1, now))
		b.WriteString("\x1b[K\n")
		lines++
	}
	if hidden > 0 {
		fmt.Fprintf(&b, "and %d more, of which %d are done\x1b[K\n", hidden, s.ended())
		lines++
	}
	b.WriteString("\x1b[J")
	s.drawn, s.redraw = lines, now
	_, _ = io.WriteString(s.w, b.String()) // a display that cannot be written has no other use
}

// visible are the parts that a picture of so many rows shows: all, or those that are
// under way, as far as there is room.
func (s *Show) visible(rows int) (out []*part, hidden int) {
	for _, p := range s.parts {
		if !p.Quiet {
			out = append(out, p)
		}
	}
	if len(out) <= rows {
		return out, 0
	}
	all := len(out)
	out = slices.DeleteFunc(out, func(p *part) bool { return p.Done >= p.Total })
	out = out[:min(len(out), rows-1)]
	return out, all - len(out)
}

func (s *Show) ended() int {
	n := 0
	for _, p := range s.parts {
		if !p.Quiet && p.Done >= p.Total {
			n++
		}
	}
	return n
}

// line is one part in at most width columns.
func (p *part) line(width int, now time.Time) string {
	head := fmt.Sprintf("%-12s  %-14s", Short(p.Name), p.Status)
	if p.Done >= p.Total || p.Status == "waiting" {
		return clip(fmt.Sprintf("%s  %s", head, size(p.Total)), width)
	}
	tail := fmt.Sprintf(" %9s/%-9s", size(p.Done), size(p.Total))
	if d := now.Sub(p.begun).Seconds(); d > 0.2 && p.Done > p.from {
		tail += fmt.Sprintf(" %9s/s", size(int64(float64(p.Done-p.from)/d)))
	}
	room := min(width-len(head)-len(tail)-4, 50)
	if room < 5 {
		return clip(head+tail, width)
	}
	full := int(int64(room) * p.Done / p.Total)
	arrow := strings.Repeat("=", full)
	if full > 0 {
		arrow = arrow[1:] + ">"
	}
	return fmt.Sprintf("%s [%-*s]%s", head, room, arrow, tail)
}

func clip(s string, width int) string { return s[:min(len(s), width)] }

// Close draws the last picture.
func (s *Show) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal && len(s.parts) > 0 {
		s.draw(s.now())
	}
}

// Short is the first twelve digits of a digest; other names stay.
func Short(name string) string {
	if _, hex, ok := strings.Cut(name, ":"); ok && len(hex) >= 64 && !strings.Contains(hex, "/") {
		return hex[:12]
	}
	return name
}

func size(n int64) string {
	f, i := float64(n), 0
	for ; f >= 1000 && i < 4; i++ {
		f /= 1000
	}
	if i == 0 {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.1f%cB", f, "kMGT"[i-1])
}
