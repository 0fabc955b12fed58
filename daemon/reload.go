package daemon

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/berthd/berth/daemon/config"
)

// reloads takes the configuration over again at each SIGHUP, until ctx ends. A new one
// counts whole or not at all.
func (p *parts) reloads(ctx context.Context, s Setup) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			p.systemd.tell("RELOADING=1\n" + monotonic())
			p.reload(s)
			p.systemd.tell("READY=1")
		}
	}
}

// live are the keys that a reload takes over; a key below one of them counts too.
var live = []string{
	"debug.level",
	`plugins."io.containerd.cri.v1.images".registry`,
	`plugins."io.containerd.transfer.v1.local".config_path`,
	"berth.credential_files",
}

func (p *parts) reload(s Setup) {
	next, err := s.Load()
	if err != nil {
		p.log.Error("the configuration stays as it was", "error", err)
		return
	}
	level, err := levelOf(next.Debug.Level)
	if err != nil {
		p.log.Error("the configuration stays as it was", "error", err)
		return
	}
	changes, err := config.Changes(p.last, next)
	if err != nil {
		p.log.Error("the configuration stays as it was", "error", err)
		return
	}
	dirs, files, err := registries(next)
	if err != nil {
		p.log.Error("the configuration stays as it was", "error", err)
		return
	}
	for _, n := range next.Notes {
		p.log.Warn("configuration", "problem", n)
	}
	p.registry.Reload(dirs, files, next.Plugins.Images.Registry.Headers)
	for _, fn := range p.changed {
		fn(next)
	}
	var now, later []string
	for _, c := range changes {
		if p.takes(c) {
			now = append(now, c)
		} else {
			later = append(later, c)
		}
	}
	p.last = next
	s.Level.Set(min(level, slog.LevelInfo)) // this line is the answer to whoever asked
	p.log.Info("configuration is read again", "taken", now, "after_restart", later, "files", next.Files)
	s.Level.Set(level)
}

func (p *parts) takes(key string) bool {
	for _, l := range append(live, p.live...) {
		if key == l || strings.HasPrefix(key, l+".") {
			return true
		}
	}
	return false
}
