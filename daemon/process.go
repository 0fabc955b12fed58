package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berthd/berth/daemon/config"
	"github.com/berthd/berth/host/cgroup"
)

// ourselves applies what the configuration says of the daemon's own process. What the
// host does not allow is told and left: it is no reason not to serve.
func ourselves(cfg config.Config, log *slog.Logger) error {
	if cfg.OOMScore != 0 {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(cfg.OOMScore)), 0); err != nil {
			log.Warn("oom_score cannot be set: the host forbids it", "value", cfg.OOMScore, "error", err)
		}
	}
	if p := cfg.Cgroup.Path; p != "" {
		if err := cgroup.System.Join(p, os.Getpid()); err != nil {
			log.Warn("the daemon stays in its cgroup", "wanted", p, "error", err)
		}
	}
	if cfg.Temp != "" {
		if err := os.MkdirAll(cfg.Temp, 0o700); err != nil {
			return fmt.Errorf("temp: %w", err)
		}
		if err := os.Setenv("TMPDIR", cfg.Temp); err != nil {
			return err
		}
	}
	for dir, variable := range map[string]string{"bin": "PATH", "lib": "LD_LIBRARY_PATH"} {
		if err := prepend(variable, filepath.Join(cfg.Plugins.Opt.Path, dir)); err != nil {
			return err
		}
	}
	return nil
}

// prepend puts a directory before a list of them, if it is there and not in it.
func prepend(variable, dir string) error {
	old := os.Getenv(variable)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() || !filepath.IsAbs(dir) || strings.HasPrefix(old+":", dir+":") {
		return nil
	}
	if old != "" {
		dir += ":" + old
	}
	return os.Setenv(variable, dir)
}
