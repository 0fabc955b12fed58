// Package config reads the daemon's configuration file.
package config

import (
	"fmt"
	"os"

	"github.com/pelletier/go-toml/v2"
)

// Config is what the daemon is told.
type Config struct {
	Version int    `toml:"version"`
	Root    string `toml:"root"`
	State   string `toml:"state"`
	GRPC    struct {
		Address string `toml:"address"`
	} `toml:"grpc"`
	Debug struct {
		Level string `toml:"level"`
	} `toml:"debug"`
}

// The places of a daemon that is told nothing.
const (
	DefaultFile    = "/etc/berth/config.toml"
	DefaultRoot    = "/var/lib/berth"
	DefaultState   = "/run/berth"
	DefaultAddress = "/run/berth/berth.sock"
)

// Default is the configuration without a file.
func Default() Config {
	c := Config{Version: 4, Root: DefaultRoot, State: DefaultState}
	c.GRPC.Address = DefaultAddress
	return c
}

// Load reads a file over the defaults. A file that is not there is an error only
// if it was asked for.
func Load(path string) (Config, error) {
	c := Default()
	if path == "" {
		if _, err := os.Stat(DefaultFile); err != nil {
			return c, nil
		}
		path = DefaultFile
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if err := toml.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("read configuration %s: %w", path, err)
	}
	return c, nil
}
