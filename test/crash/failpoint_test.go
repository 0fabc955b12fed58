package crash

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/lab"
)

var pointCall = regexp.MustCompile(`failpoint\.(?:Here|Err)\("([^"]+)"\)`)

// points finds every failpoint of the daemon in the source.
func points(t *testing.T) []string {
	var out []string
	root := lab.Root(t)
	for _, tier := range []string{"daemon", "server", "engine", "store", "host"} {
		err := filepath.WalkDir(filepath.Join(root, tier), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") {
				return err
			}
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			for _, m := range pointCall.FindAllStringSubmatch(string(text), -1) {
				out = append(out, m[1])
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ofPods are the areas of failpoints that only pods come by.
var ofPods = regexp.MustCompile(`^(cni|container|netns|pod|sandbox)\.`)

// ofForeignShims is reached only with a shim under the CRI that has not our call for
// create and start in one.
const ofForeignShims = "task.created.to.run"

// TestFailpoints kills the daemon at every failpoint while an image and two
// containers live their lives, and lives them again.
func TestFailpoints(t *testing.T) {
	all := points(t)
	if len(all) < 10 {
		t.Fatalf("only %d failpoints were found in the source: %v", len(all), all)
	}
	p := newPlace(t, lab.BuildWith(t, "failpoint"))
	short, long := p.Name("short"), p.Name("long")
	box, spec := p.Name("box"), filepath.Join(p.Dir, "spec.json")
	write(t, spec, p.d.MustCtr("oci", "spec"))
	life := [][]string{
		{"images", "pull", "--plain-http", p.busybox},
		{"run", "--rm", p.busybox, short, "echo", "it works"},
		{"run", "-d", p.busybox, long, "sleep", "1000"},
		{"tasks", "kill", "-s", "SIGKILL", long},
		{"tasks", "rm", "-f", long},
		{"containers", "rm", long},
		{"images", "rm", "--sync", p.busybox},
		{"sandboxes", "run", "--runtime", "io.containerd.runc.v2", spec, box},
		{"sandboxes", "rm", box},
	}
	for _, point := range all {
		if ofPods.MatchString(point) || point == ofForeignShims {
			continue
		}
		p.d.Stop(t)
		p.d.Env = []string{"BERTH_FAILPOINT=" + point + "=kill"}
		_, alive := p.d.TryStart()
		hit := !alive || p.liveUntilDeath(life)
		p.d.Env = nil
		if !hit {
			t.Errorf("failpoint %s is never reached: extend the life that this test leads", point)
			continue
		}
		p.restart()
		p.giveUp(short, long)
		_, _ = p.d.Ctr("sandboxes", "rm", box) // there may be none
		for _, args := range life {
			out, err := p.d.Ctr(args...)
			if err != nil && args[0] != "tasks" {
				t.Fatalf("after %s: ctr %s: %v\n%s\n%s", point, strings.Join(args, " "), err, out, p.d.Log)
			}
		}
		p.nothing(false)
		if t.Failed() {
			t.Fatalf("failpoint %s", point)
		}
	}
}

// liveUntilDeath runs commands until the daemon is dead.
func (p *place) liveUntilDeath(life [][]string) bool {
	for _, args := range life {
		if p.client(args...) == nil {
			continue
		}
		select {
		case <-p.d.Done():
			return true
		case <-time.After(time.Second): // it failed for another reason
		}
	}
	select {
	case <-p.d.Done():
		return true
	default:
		return false
	}
}
