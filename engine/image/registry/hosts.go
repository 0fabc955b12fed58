package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/berthd/berth/base/errs"
)

// hostsDirs finds and remembers what several roots of certs.d say about hosts.
// Files are parsed once and again when one of them changed.
type hostsDirs struct {
	roots []string
	log   *slog.Logger

	mu    sync.Mutex
	cache map[string]*cachedHosts // by directory
}

type cachedHosts struct {
	config *hostsConfig
	err    error
	stamp  string // of every input, as it was when parsed
}

func newHostsDirs(list string, log *slog.Logger) *hostsDirs {
	d := &hostsDirs{log: log, cache: map[string]*cachedHosts{}}
	for _, root := range strings.Split(list, ":") {
		if root != "" {
			d.roots = append(d.roots, root)
		}
	}
	return d
}

// candidates are the directory names that stand for a host, best first. Names
// that could leave the root are none.
func candidates(host string) []string {
	if strings.ContainsAny(host, "/\x00") || host == "." || host == ".." || strings.HasPrefix(host, "_") {
		return nil
	}
	if i := strings.LastIndex(host, ":"); i > 0 && portOf(host) != "" {
		return []string{host[:i] + "_" + host[i+1:] + "_", host, "_default"}
	}
	return []string{host, "_default"}
}

// find returns the configuration of host: that of the first directory which
// exists, root by root. No directory gives an empty configuration.
func (d *hostsDirs) find(host string) (*hostsConfig, error) {
	for _, root := range d.roots {
		for _, name := range candidates(host) {
			dir := filepath.Join(root, name)
			fi, err := os.Stat(dir)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, errs.New(errs.FailedPrecondition, "look for the hosts of %s: %w", host, err)
			}
			if fi.IsDir() {
				return d.load(dir)
			}
		}
	}
	return &hostsConfig{root: endpoint{caps: canAll}}, nil
}

func (d *hostsDirs) load(dir string) (*hostsConfig, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.cache[dir]; c != nil {
		inputs := []string{}
		if c.config != nil {
			inputs = c.config.inputs
		}
		if stampOf(dir, inputs) == c.stamp {
			return c.config, c.err
		}
	}
	// The stamp of the file is taken before it is read: a change in between is
	// seen by the next call.
	before := stampOf(dir, nil)
	h, err := readHostsDir(dir)
	c := &cachedHosts{config: h, err: err, stamp: before}
	if err == nil {
		if after := stampOf(dir, nil); after == before {
			c.stamp = stampOf(dir, h.inputs)
		}
		for _, w := range h.warnings {
			d.log.Warn("hosts file", "file", h.path, "problem", w)
		}
	}
	d.cache[dir] = c
	return h, err
}

// stampOf describes a directory, its hosts.toml and other files well enough to
// notice a change.
func stampOf(dir string, inputs []string) string {
	var b strings.Builder
	for _, p := range append([]string{dir, filepath.Join(dir, "hosts.toml")}, inputs...) {
		if fi, err := os.Stat(p); err == nil {
			fmt.Fprintf(&b, "%d.%d;", fi.ModTime().UnixNano(), fi.Size())
		} else {
			b.WriteString("-;")
		}
	}
	return b.String()
}

func readHostsDir(dir string) (*hostsConfig, error) {
	file := filepath.Join(dir, "hosts.toml")
	data, err := os.ReadFile(file)
	if err == nil && len(strings.TrimSpace(string(data))) > 0 {
		h, err := parseHosts(dir, data)
		if err != nil {
			return nil, errs.New(errs.FailedPrecondition, "%s: %w", file, err)
		}
		h.path = file
		return h, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.FailedPrecondition, "read hosts: %w", err)
	}
	return readCertDir(dir)
}

// readCertDir reads a directory in Docker's older style, certificates only.
func readCertDir(dir string) (*hostsConfig, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, errs.New(errs.FailedPrecondition, "read certificates: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	cas, pairs := certPairs(dir, names)
	settings, err := loadTLS(cas, pairs, nil)
	if err != nil {
		return nil, errs.New(errs.FailedPrecondition, "%s: %w", dir, err)
	}
	h := &hostsConfig{path: dir, root: endpoint{caps: canAll, tls: settings}, inputs: cas}
	for _, p := range pairs {
		h.inputs = append(h.inputs, p[0], p[1])
	}
	return h, nil
}
