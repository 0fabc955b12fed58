package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/host/mount"
)

// The files of a pod, in its directory:
//
//	hostname  hosts  resolv.conf   what its containers see in /etc
//	shm/                           a tmpfs, its containers' /dev/shm
//	containers/<id>/               volumes and image mounts of one container
const (
	fileHostname = "hostname"
	fileHosts    = "hosts"
	fileResolv   = "resolv.conf"
	dirShm       = "shm"
)

// shmSize is how much a pod may put into /dev/shm; its memory limit holds too.
const shmSize = "64m"

func (p *Pods) makeFiles(pod *Pod, userns *podspec.Mapping) error {
	dir := p.dir(pod.ID)
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	uid, gid := mappedRoot(userns)
	for name, make := range map[string]func(*cri.PodSandboxConfig) (string, error){fileHostname: hostname, fileHosts: hosts, fileResolv: resolvConf} {
		text, err := make(pod.Config)
		if err != nil {
			return err
		}
		if err := writeFor(filepath.Join(dir, name), text, uid, gid); err != nil {
			return fmt.Errorf("files: %w", err)
		}
	}
	if hostIPC(pod.Config) {
		return nil
	}
	shm := filepath.Join(dir, dirShm)
	if err := os.Mkdir(shm, 0o700); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	size := shmSize
	if s := pod.Config.GetAnnotations()[annotationShmSize]; s != "" {
		size = s
	}
	return mount.All([]spec.Mount{{Type: "tmpfs", Source: "shm", Options: []string{
		"nosuid", "nodev", "noexec", "mode=1777", "size=" + size, fmt.Sprintf("uid=%d", uid), fmt.Sprintf("gid=%d", gid),
	}}}, shm)
}

func mappedRoot(m *podspec.Mapping) (uid, gid int) {
	if m == nil {
		return 0, 0
	}
	return int(m.UIDs()[0].HostID), int(m.GIDs()[0].HostID)
}

func writeFor(path, text string, uid, gid int) error {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	return errors.Join(os.Chmod(path, 0o644), os.Lchown(path, uid, gid))
}

func hostname(c *cri.PodSandboxConfig) (string, error) {
	name := c.GetHostname()
	if name == "" || hostNetwork(c) {
		var err error
		if name, err = os.Hostname(); err != nil {
			return "", err
		}
	}
	return name + "\n", nil
}

// hosts is what a container sees whose kubelet mounts no file of its own.
func hosts(c *cri.PodSandboxConfig) (string, error) {
	if hostNetwork(c) {
		b, err := os.ReadFile("/etc/hosts")
		return string(b), errs.Ignore(err, fs.ErrNotExist)
	}
	return "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n", nil
}

// addOwnHost writes the pod's own addresses into its hosts file, and the names
// that its annotation adds.
func (p *Pods) addOwnHost(pod *Pod) error {
	var b strings.Builder
	if name := pod.Config.GetHostname(); name != "" {
		for _, ip := range pod.IPs {
			fmt.Fprintf(&b, "%s\t%s\n", ip, name)
		}
	}
	for _, e := range strings.Split(pod.Config.GetAnnotations()[annotationHosts], ",") {
		if name, ip, ok := strings.Cut(e, ":"); ok && !strings.ContainsAny(e, " \t\n\x00") {
			fmt.Fprintf(&b, "%s\t%s\n", ip, name)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(p.dir(pod.ID), fileHosts), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(b.String())
	return errors.Join(err, f.Close())
}

// resolvConf is the pod's own, or a copy of the host's.
func resolvConf(c *cri.PodSandboxConfig) (string, error) {
	d := c.GetDnsConfig()
	if len(d.GetServers())+len(d.GetSearches())+len(d.GetOptions()) == 0 {
		b, err := os.ReadFile("/etc/resolv.conf")
		return string(b), errs.Ignore(err, fs.ErrNotExist)
	}
	for _, s := range slices.Concat(d.GetServers(), d.GetSearches(), d.GetOptions()) {
		if strings.ContainsAny(s, "\n\r\x00 \t") {
			return "", errs.New(errs.InvalidArgument, "dns_config: %q holds a character that resolv.conf cannot", s)
		}
	}
	var b strings.Builder
	if s := d.GetSearches(); len(s) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s, " "))
	}
	for _, s := range d.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if o := d.GetOptions(); len(o) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(o, " "))
	}
	return b.String(), nil
}

// removeFiles takes the pod's directory away; what is still mounted in it first.
func (p *Pods) removeFiles(id string) error {
	dir := p.dir(id)
	if err := mount.DetachBelow(dir); err != nil {
		return fmt.Errorf("files of pod %s: %w", id, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("files of pod %s: %w", id, err)
	}
	return nil
}
