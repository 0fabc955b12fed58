package apparmor

import (
	"os/exec"
	"strings"
	"testing"
)

// TestProfileCompiles has the profile compiled, not loaded: that needs no AppArmor
// in the kernel.
func TestProfileCompiles(t *testing.T) {
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Fatal(err)
	}
	compile := func(text string) (string, error) {
		cmd := exec.Command(parser, "--skip-kernel-load", "--skip-cache", "--stdout")
		cmd.Stdin = strings.NewReader(text)
		var fail strings.Builder
		cmd.Stderr = &fail
		out, err := cmd.Output()
		if err != nil || len(out) == 0 {
			return fail.String(), err
		}
		return string(out), nil
	}
	out, err := compile(Text(Default))
	if err != nil || !strings.Contains(out, Default) {
		t.Errorf("the profile does not compile: %v: %.500s", err, out)
	}
	if _, err := compile("profile x { nonsense }"); err == nil {
		t.Error("the compiler takes anything")
	}
}

func TestNotEnabled(t *testing.T) {
	if Enabled() {
		return // what there is then is the kernel's matter
	}
	if ok, err := Loaded(Default); ok || err == nil {
		t.Errorf("a profile is loaded where there is no AppArmor: %v, %v", ok, err)
	}
}
