package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/berthd/berth/base/errs"
)

// cidrFile is the configuration that is made of the template, by the name that
// containerd gives it.
const cidrFile = "10-containerd-net.conflist"

// SetPodCIDR makes a network configuration for the pods' addresses of this node,
// where the configuration names a template and no network is there yet (protocols.md
// 3.1, UpdateRuntimeConfig).
func (p *Pods) SetPodCIDR(_ context.Context, list string) error {
	if list == "" {
		return nil
	}
	var data struct {
		PodCIDR       string
		PodCIDRRanges []string
		Routes        []string
	}
	for _, c := range strings.Split(list, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(c))
		if err != nil {
			return errs.New(errs.InvalidArgument, "pod_cidr %q: %v", c, err)
		}
		route := "0.0.0.0/0"
		if prefix.Addr().Is6() {
			route = "::/0"
		}
		data.PodCIDRRanges, data.Routes = append(data.PodCIDRRanges, prefix.String()), append(data.Routes, route)
	}
	data.PodCIDR = data.PodCIDRRanges[0]
	if p.cfg.CNITemplate == "" || len(p.cfg.Networks.Files()) > 0 {
		return nil
	}
	t, err := template.ParseFiles(p.cfg.CNITemplate)
	if err != nil {
		return fmt.Errorf("template of the pod network: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return fmt.Errorf("template of the pod network: %w", err)
	}
	return writeWhole(filepath.Join(p.cfg.CNIDir, cidrFile), b.Bytes())
}

// writeWhole puts a file in its place in one step: the folder is being watched.
func writeWhole(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".berth-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, errs.Ignore(os.Remove(f.Name()), fs.ErrNotExist))
	}
	return err
}
