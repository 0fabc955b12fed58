package daemon

import (
	"context"
	"path/filepath"

	"github.com/berthd/berth/daemon/config"
	"github.com/berthd/berth/host/nri"
)

// nriPlugins builds the runtime's side of NRI, or nil if it is disabled. A daemon
// that is not the machine's has its socket in its own directory.
func (p *parts) nriPlugins(ctx context.Context) *nri.Plugins {
	cfg := p.cfg.Plugins.NRI
	pl := p.plugin("nri.v1", "nri")
	if cfg.Off || p.cfg.Off("io.containerd.nri.v1.nri") {
		pl.Skipped = "disabled by the configuration"
		return nil
	}
	socket := cfg.Socket
	if socket == nri.DefaultSocket && p.cfg.State != config.DefaultState {
		socket = filepath.Join(p.cfg.State, "nri.sock")
	}
	if cfg.NoConnections {
		socket = ""
	}
	c := nri.Config{
		Name: "berth", Version: Version, Socket: socket, PluginDir: cfg.PluginPath, ConfigDir: cfg.PluginConfigPath,
		Register: cfg.RegistrationTimeout.Std(), Request: cfg.RequestTimeout.Std(), Log: p.log,
	}
	if v := cfg.Validator; v.Enable {
		c.Validator = nri.Validator{
			RejectOCIHooks: v.RejectOCIHooks, RejectDefaultSeccomp: v.RejectDefault, RejectUnconfinedSeccomp: v.RejectUnconfined, RejectCustomSeccomp: v.RejectCustom,
			RejectNamespaces: v.RejectNamespaces, RejectSysctls: v.RejectSysctl, Required: v.Required, TolerateMissingAnnotations: v.TolerateMissing,
		}
	}
	return nri.New(ctx, c)
}
