// Package crash kills the daemon and its shims where it hurts: at every failpoint
// of the source and at random moments, on a full disk and over a reboot. After
// each the daemon must be ready at once, the same command must work, and nothing
// may be left over.
package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"

	"github.com/berthd/berth/test/lab"
)

// ready is how soon a daemon must answer after it was killed.
const ready = 2 * time.Second

// rounds is how often each kind of work is interrupted; BERTH_CRASH_ROUNDS
// changes it. The full count is 50.
func rounds(t *testing.T) int {
	text := os.Getenv("BERTH_CRASH_ROUNDS")
	if text == "" {
		return 50
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("BERTH_CRASH_ROUNDS=%q is not a count", text)
	}
	return n
}

// random is seeded from BERTH_CRASH_SEED, or anew; the seed is printed.
func random(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("BERTH_CRASH_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("BERTH_CRASH_SEED=%q is not a number", text)
		}
		seed = n
	}
	t.Logf("seed: BERTH_CRASH_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, seed))
}

// place is a lab with a registry that has two images, and a daemon.
type place struct {
	*lab.Lab
	t       *testing.T
	d       *lab.Daemon
	busybox string
	layered string
}

func newPlace(t *testing.T, bin string) *place {
	l := lab.New(t)
	if bin != "" {
		l.Bin = bin
	}
	return placeIn(t, l)
}

func placeIn(t *testing.T, l *lab.Lab, args ...string) *place {
	reg := l.Registry()
	p := &place{Lab: l, t: t, busybox: reg.Host + "/library/busybox:latest", layered: reg.Host + "/library/layered:latest"}
	oci := filepath.Join(l.Dir, "oci")
	if err := lab.Busybox(oci); err != nil {
		t.Fatal(err)
	}
	push := func(from, to string) {
		lab.Run(t, lab.Tool(t, "skopeo"), "copy", "-q", "--dest-tls-verify=false", "oci:"+from, "docker://"+to)
	}
	push(oci+":busybox", p.busybox)
	push(filepath.Join(oci, "layered")+":layered", p.layered)
	p.d = l.Daemon(args...)
	return p
}

// restart starts the daemon that was killed and checks that it is ready in time.
func (p *place) restart() {
	p.t.Helper()
	begin := time.Now()
	p.d.Start()
	p.answers()
	if took := time.Since(begin); took > ready {
		p.t.Errorf("ready after %s, more than %s; the daemon says:\n%s", took.Round(time.Millisecond), ready, p.d.Log)
	}
}

// answers waits for the answer to a first request.
func (p *place) answers() {
	p.t.Helper()
	conn, err := p.d.Dial()
	if err != nil {
		p.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := namespaces.NewNamespacesClient(conn).List(ctx, &namespaces.ListNamespacesRequest{}); err != nil {
		p.t.Fatalf("the daemon does not answer: %v\n%s", err, p.d.Log)
	}
}

// interrupt runs a command and kills the daemon after a while; the command's fate
// does not matter.
func (p *place) interrupt(after time.Duration, fn func()) {
	p.t.Helper()
	done := make(chan struct{})
	// owner: this function waits for done below.
	go func() { defer close(done); fn() }()
	time.Sleep(after)
	p.d.Kill()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		p.t.Fatal("a client hangs after the daemon's death")
	}
}

// giveUp takes away what a client leaves that died or was cut off: its container,
// its snapshot and its lease. What the daemon made of its own it must remove
// itself.
func (p *place) giveUp(ids ...string) {
	p.t.Helper()
	for _, id := range ids {
		_, _ = p.d.Ctr("tasks", "rm", "-f", id) // there may be none
		_, _ = p.d.Ctr("containers", "rm", id)
		_, _ = p.d.Ctr("snapshots", "rm", id)
	}
	for line := range strings.Lines(p.d.MustCtr("leases", "ls")) {
		// A client's lease bears its expiry only.
		if f := strings.Fields(line); len(f) == 3 && strings.HasPrefix(f[2], "containerd.io/gc.expire=") && !strings.Contains(f[2], ",") {
			_, _ = p.d.Ctr("leases", "rm", f[0])
		}
	}
}

// nothing checks that neither the daemon nor the machine has anything left; with
// images, that those may stay.
func (p *place) nothing(images bool) {
	p.t.Helper()
	left, err := p.d.Left(!images)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, r := range left {
		p.t.Errorf("left behind in the daemon: %s", r)
	}
	if !images {
		for _, f := range p.onDisk() {
			p.t.Errorf("left behind on disk: %s", f)
		}
	}
	p.Ledger().Must(p.t)
	if p.t.Failed() {
		p.t.Fatalf("daemon:\n%s", p.d.Log)
	}
}

// onDisk lists blobs, ingests, layers and bundles, once no collection takes them
// away any more.
func (p *place) onDisk() []string {
	end := time.Now().Add(5 * time.Second)
	for {
		var out []string
		for _, pattern := range []string{"root/content/blobs/*/*", "root/content/ingest/*", "root/overlayfs/snapshots/*", "root/overlayfs/[0-9]*", "root/native/*/*",
			"root/io.containerd.runtime.v2.task/*/*", "state/io.containerd.runtime.v2.task/*/*"} {
			found, _ := filepath.Glob(filepath.Join(p.Dir, pattern))
			out = append(out, found...)
		}
		if len(out) == 0 || time.Now().After(end) {
			return out
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// run runs a container to its end and checks its output.
func (p *place) run(image, id string) {
	p.t.Helper()
	out := p.d.MustCtr("run", "--rm", image, id, "echo", "it works")
	if strings.TrimSpace(out) != "it works" {
		p.t.Fatalf("the container printed %q", out)
	}
}

func (p *place) pull(image string) {
	p.t.Helper()
	p.d.MustCtr("images", "pull", "--plain-http", image)
}

func (p *place) removeImage(image string) { p.t.Helper(); p.d.MustCtr("images", "rm", "--sync", image) }

// whole checks that every file of the layered image is there and has its size.
func (p *place) whole(id string) {
	p.t.Helper()
	out := p.d.MustCtr("run", "--rm", p.layered, id, "sh", "-c", "find /bulk -type f -size 8192c | wc -l")
	if strings.TrimSpace(out) != fmt.Sprint(4*300) {
		p.t.Fatalf("the image has %s whole files, want %d", strings.TrimSpace(out), 4*300)
	}
}

// duration is how long fn takes here and now.
func duration(fn func()) time.Duration {
	begin := time.Now()
	fn()
	return time.Since(begin)
}

// client runs ctr, which may be cut off.
func (p *place) client(args ...string) error {
	cmd := exec.Command(lab.Tool(p.t, "ctr"), args...)
	cmd.Env = append(os.Environ(), p.d.Environ()...)
	return cmd.Run()
}
