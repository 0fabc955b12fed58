package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/daemon/config"
	"github.com/berthd/berth/engine/pod"
)

// features asks what a handler's runtime can do. To ask starts two programs, so the
// answer is kept in the state directory for as long as both stay the same.
func (p *parts) features(ctx context.Context, r config.Handler, h *pod.Handler) (*features.Features, error) {
	kept, known := p.featuresFile(r, h)
	out := &features.Features{}
	if data, err := os.ReadFile(kept); known && err == nil && json.Unmarshal(data, out) == nil {
		return out, nil
	}
	out, err := p.launcher.Features(ctx, h.Runtime, h.Options)
	if err != nil || !known {
		return out, err
	}
	data, err := json.Marshal(out)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(kept), 0o700)
	}
	if err == nil {
		err = os.WriteFile(kept+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(kept+".new", kept)
	}
	if err != nil { // it is asked again at the next start
		p.log.Warn("what a runtime can do is not kept", "runtime", h.Runtime, "error", err)
	}
	return out, nil
}

// featuresFile names the file for the present shim and runtime programs.
func (p *parts) featuresFile(r config.Handler, h *pod.Handler) (string, bool) {
	path, err := p.launcher.Path(h.Runtime)
	if err != nil {
		return "", false
	}
	programs := []string{path}
	if r.Type == config.RuncType {
		binary, _ := r.Options["BinaryName"].(string)
		if binary == "" {
			binary = "runc"
		}
		if path, err = exec.LookPath(binary); err != nil {
			return "", false
		}
		programs = append(programs, path)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %s %x\n", h.Runtime, h.Options.TypeURL, h.Options.Value)
	for _, path := range programs {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return "", false
		}
		fmt.Fprintf(sum, "%s %d %d %d %d\n", path, st.Dev, st.Ino, st.Size, unix.TimespecToNsec(st.Mtim))
	}
	return filepath.Join(p.cfg.State, "features", fmt.Sprintf("%x.json", sum.Sum(nil)[:16])), true
}
