package script

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berthd/berth/test/lab"
)

// TestCtr runs each session ctr-*.txt with unmodified ctr of containerd 2.4.2 and
// of 1.6, as $CTR. The conditions [2.4] and [1.6] tell them apart.
func TestCtr(t *testing.T) {
	l := lab.New(t)
	reg := registry(t, l)
	for version, program := range map[string]string{"2.4": "ctr", "1.6": "ctr-1.6"} {
		t.Run(version, func(t *testing.T) {
			p := params(t, l, reg, sessions(t, "ctr-*.txt"), "CTR="+lab.Tool(t, program), "CTRNAME="+program, "TOOLS="+filepath.Dir(lab.Tool(t, program)))
			p.Condition = func(c string) (bool, error) { return c == version, nil }
			setup := p.Setup
			p.Setup = func(env *testscript.Env) error {
				// Containers' cgroups are named for the namespace: sessions run side by side.
				env.Setenv("CONTAINERD_NAMESPACE", strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")+"-"+version)
				return setup(env)
			}
			p.Deadline = time.Now().Add(90 * time.Second)
			testscript.Run(t, p)
		})
	}
}
