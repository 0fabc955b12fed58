package crash

import (
	"math/rand/v2"
	"testing"
	"time"
)

// moment is a random one within what the work takes, or shortly after it.
func moment(r *rand.Rand, takes time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(takes + takes/8)))
}

// TestKillInPull kills the daemon in the middle of pulls.
func TestKillInPull(t *testing.T) {
	r := random(t)
	p := newPlace(t, "")
	takes := duration(func() { p.pull(p.layered) })
	p.removeImage(p.layered)
	id := p.Name("whole")
	for n := range rounds(t) {
		after := moment(r, takes)
		p.interrupt(after, func() { _ = p.client("images", "pull", "--plain-http", p.layered) })
		p.restart()
		p.pull(p.layered)
		if n%5 == 0 {
			p.whole(id)
		}
		p.removeImage(p.layered)
		p.giveUp()
		p.nothing(false)
		if t.Failed() {
			t.Fatalf("round %d, killed after %s of %s", n, after, takes)
		}
	}
}

// TestKillInRun kills the daemon in the middle of runs.
func TestKillInRun(t *testing.T) {
	r := random(t)
	p := newPlace(t, "")
	p.pull(p.busybox)
	id := p.Name("run")
	takes := duration(func() { p.run(p.busybox, id) })
	for n := range rounds(t) {
		after := moment(r, takes)
		p.interrupt(after, func() { _ = p.client("run", "--rm", p.busybox, id, "echo", "it works") })
		p.restart()
		p.giveUp(id)
		p.nothing(true)
		p.run(p.busybox, id)
		p.nothing(true)
		if t.Failed() {
			t.Fatalf("round %d, killed after %s of %s", n, after, takes)
		}
	}
}

// TestKillInRemove kills the daemon in the middle of removals.
func TestKillInRemove(t *testing.T) {
	r := random(t)
	p := newPlace(t, "")
	p.pull(p.busybox)
	id := p.Name("remove")
	remove := func() {
		_ = p.client("tasks", "rm", "-f", id)
		_ = p.client("containers", "rm", id)
		_ = p.client("images", "rm", "--sync", p.busybox)
	}
	start := func() { p.d.MustCtr("run", "-d", p.busybox, id, "sleep", "1000") }
	start()
	takes := duration(remove)
	p.nothing(false)
	for n := range rounds(t) {
		p.pull(p.busybox)
		start()
		after := moment(r, takes)
		p.interrupt(after, remove)
		p.restart()
		remove()
		p.giveUp(id)
		p.nothing(false)
		if t.Failed() {
			t.Fatalf("round %d, killed after %s of %s", n, after, takes)
		}
	}
}
