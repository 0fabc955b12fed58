package container

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/base/errs"
)

// files writes the container's hosts, hostname and resolv.conf into its directory
// and returns the mounts that show them.
func (k *creation) files() ([]rspec.Mount, error) {
	name := k.x.Hostname
	host := k.net.namespace == "host"
	if name == "" {
		if name = k.id[:12]; host {
			if h, err := os.Hostname(); err == nil {
				name = h
			}
		}
	}
	hosts, err := k.hosts(name, host)
	if err != nil {
		return nil, err
	}
	resolv, err := k.resolv()
	if err != nil {
		return nil, err
	}
	var out []rspec.Mount
	for _, f := range []struct{ file, at, text string }{
		{"hostname", "/etc/hostname", name + "\n"}, {hostsFile, "/etc/hosts", hosts}, {"resolv.conf", "/etc/resolv.conf", resolv},
	} {
		path := filepath.Join(k.dir, f.file)
		if err := os.WriteFile(path, []byte(f.text), 0o644); err != nil {
			return nil, fmt.Errorf("file for container %s: %w", k.name, err)
		}
		out = append(out, rspec.Mount{Destination: f.at, Type: "bind", Source: path, Options: []string{"rbind", "rprivate", "rw"}})
	}
	return out, nil
}

const hostsFile = "hosts"

// ownMark ends the lines of a container's own addresses, which change when it is
// connected anew.
const ownMark = "# this container"

func (k *creation) hosts(name string, host bool) (string, error) {
	var b strings.Builder
	if host {
		data, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		b.Write(data)
		if len(data) > 0 && data[len(data)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
		b.WriteString(ownLines(k.net.ips, name))
	}
	for _, a := range k.x.addHosts {
		n, ip, ok := strings.Cut(a, ":")
		if !ok {
			n, ip, ok = strings.Cut(a, "=")
		}
		if net.ParseIP(strings.Trim(ip, "[]")) == nil || !ok || n == "" {
			return "", errs.New(errs.InvalidArgument, "--add-host %q: write NAME:IP", a)
		}
		fmt.Fprintf(&b, "%s\t%s\n", strings.Trim(ip, "[]"), n)
	}
	return b.String(), nil
}

func ownLines(ips []string, name string) string {
	if len(ips) == 0 {
		ips = []string{"127.0.1.1"}
	}
	var b strings.Builder
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s %s\n", ip, name, ownMark)
	}
	return b.String()
}

// writeHosts puts new addresses of a container into its hosts file.
func writeHosts(dir string, ips []string, name string) error {
	path := filepath.Join(dir, hostsFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		if !strings.HasSuffix(strings.TrimSpace(line), ownMark) {
			b.WriteString(line)
		}
	}
	b.WriteString(ownLines(ips, name))
	return os.WriteFile(path, []byte(b.String()), 0o644) // in place: it may be mounted
}

// resolv is the host's resolv.conf with what the flags replace.
func (k *creation) resolv() (string, error) {
	for _, d := range k.x.dns {
		if net.ParseIP(d) == nil {
			return "", errs.New(errs.InvalidArgument, "--dns %q: it must be an IP address", d)
		}
	}
	var b strings.Builder
	if data, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		for line := range strings.Lines(string(data)) {
			word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			if word == "nameserver" && len(k.x.dns) > 0 || (word == "search" || word == "domain") && len(k.x.dnsSearch) > 0 || word == "options" && len(k.x.dnsOpts) > 0 {
				continue
			}
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	for _, d := range k.x.dns {
		fmt.Fprintln(&b, "nameserver", d)
	}
	if len(k.x.dnsSearch) > 0 {
		fmt.Fprintln(&b, "search", strings.Join(k.x.dnsSearch, " "))
	}
	if len(k.x.dnsOpts) > 0 {
		fmt.Fprintln(&b, "options", strings.Join(k.x.dnsOpts, " "))
	}
	return b.String(), nil
}
