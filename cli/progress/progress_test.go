package progress

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const layer = "sha256:e6590344b1a5dc518829d6ea1524fc12f8bcd14ee9a02aa6ad8360cce3a9a9e9"

func TestPlain(t *testing.T) {
	var b strings.Builder
	s := New(&b, nil)
	s.Tell(Event{Name: "img", Status: "Resolving"})
	s.Tell(Event{Name: "img", Status: "Resolving"})
	s.Tell(Event{Name: layer, Status: "waiting", Total: 3_000_000})
	for done := int64(0); done < 3_000_000; done += 500_000 {
		s.Tell(Event{Name: layer, Status: "downloading", Done: done, Total: 3_000_000})
	}
	s.Tell(Event{Name: layer, Status: "complete", Done: 3_000_000, Total: 3_000_000})
	s.Tell(Event{Name: "sha256:1", Status: "complete", Done: 5, Total: 5, Quiet: true})
	s.Close()
	want := "img: Resolving\ne6590344b1a5: downloading 3.0MB\ne6590344b1a5: complete 3.0MB\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestBars(t *testing.T) {
	var b strings.Builder
	now := time.Unix(1000, 0)
	s := New(&b, func() (int, int) { return 80, 24 })
	s.now = func() time.Time { return now }
	s.Tell(Event{Name: layer, Status: "downloading", Done: 0, Total: 4_000_000})
	now = now.Add(time.Second)
	b.Reset()
	s.Tell(Event{Name: layer, Status: "downloading", Done: 2_000_000, Total: 4_000_000})
	got := b.String()
	for _, part := range []string{"\x1b[1A", "e6590344b1a5", "=>", "2.0MB/4.0MB", "2.0MB/s"} {
		if !strings.Contains(got, part) {
			t.Errorf("%q lacks %q", got, part)
		}
	}
	if n := len(strings.TrimSuffix(strings.TrimPrefix(got, "\x1b[1A"), "\x1b[K\n\x1b[J")); n > 79 {
		t.Errorf("the line has %d columns: it would wrap", n)
	}
	b.Reset()
	now = now.Add(interval / 2)
	s.Tell(Event{Name: layer, Status: "downloading", Done: 2_100_000, Total: 4_000_000})
	if b.Len() != 0 {
		t.Error("it draws more often than the interval")
	}
}

func TestMorePartsThanRows(t *testing.T) {
	var b strings.Builder
	s := New(&b, func() (int, int) { return 80, 7 })
	for i := range 12 {
		name := strings.Replace(layer, "e659", fmt.Sprintf("%04d", i), 1)
		s.Tell(Event{Name: name, Status: "downloading", Done: 1, Total: 100})
		if i%2 == 0 {
			s.Tell(Event{Name: name, Status: "complete", Done: 100, Total: 100})
		}
	}
	b.Reset()
	s.Close()
	if n := strings.Count(b.String(), "\n"); n > 5 {
		t.Errorf("%d lines on a screen of 7 rows", n)
	}
	if !strings.Contains(b.String(), "and 8 more, of which 6 are done") {
		t.Errorf("%q", b.String())
	}
}
