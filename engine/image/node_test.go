package image

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestDigestFor(t *testing.T) {
	e := Entry{ID: "sha256:1", Digests: []string{"docker.io/library/busybox@sha256:a", "registry.k8s.io/e2e/busybox@sha256:b"}}
	for ref, want := range map[string]string{
		"registry.k8s.io/e2e/busybox:1.29": "registry.k8s.io/e2e/busybox@sha256:b", "busybox": "docker.io/library/busybox@sha256:a",
		"quay.io/other:1": "docker.io/library/busybox@sha256:a", "sha256:1": "docker.io/library/busybox@sha256:a",
	} {
		if got := e.DigestFor(ref); got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
	if got := (Entry{ID: "sha256:1"}).DigestFor("busybox"); got != "sha256:1" {
		t.Errorf("without digests: %s", got)
	}
}

func TestSameRegistry(t *testing.T) {
	for _, c := range []struct {
		server, host string
		want         bool
	}{
		{"https://index.docker.io/v1/", "registry-1.docker.io", true}, {"quay.io", "quay.io", true}, {"https://quay.io/v2", "quay.io", true},
		{"quay.io", "evil.example", false}, {"quay.io.evil.example", "quay.io", false}, {"127.0.0.1:5000", "127.0.0.1:5001", false},
	} {
		if got := sameRegistry(c.server, c.host); got != c.want {
			t.Errorf("%s and %s: %v", c.server, c.host, got)
		}
	}
}

// TestWatchdog bites when bytes stand still, whatever else is told meanwhile.
func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bitten time.Time
		begin := time.Now()
		w := newWatchdog(10*time.Second, func() { bitten = time.Now() })
		defer w.stop()
		for n := range 4 {
			w.saw(Progress{Name: "layer", Event: "downloading", Progress: int64(n)})
			time.Sleep(5 * time.Second)
		}
		for range 4 {
			w.saw(Progress{Name: "layer", Event: "downloading", Progress: 3})
			time.Sleep(3 * time.Second)
		}
		synctest.Wait() // for the one that bites
		if took := bitten.Sub(begin); took != 25*time.Second {
			t.Errorf("it bit after %s, want 25 s: ten after the last byte", took)
		}
	})
}
