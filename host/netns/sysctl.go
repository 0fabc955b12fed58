package netns

import (
	"errors"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/berthd/berth/base/errs"
)

// parts splits a variable's name as sysctl(8) does: whichever of '.' and '/' comes
// first separates, and the other one is a dot within a part.
func parts(key string) []string {
	i := strings.IndexAny(key, "./")
	if i < 0 {
		return []string{key}
	}
	out := strings.Split(key, key[i:i+1])
	other := map[byte]string{'.': "/", '/': "."}[key[i]]
	for n := range out {
		if other == "/" {
			out[n] = strings.ReplaceAll(out[n], "/", ".")
		}
	}
	return out
}

// SysctlInterface is the network interface that a kernel variable belongs to, and
// that must be there before it can be set; "" for variables of no interface, and of
// those that every namespace has from its start.
func SysctlInterface(key string) string {
	p := parts(key)
	// net.ipv4.conf.NAME.x, net.ipv6.neigh.NAME.x (ip-sysctl.rst), net.mpls.conf.NAME.x
	if len(p) < 5 || p[0] != "net" || (p[2] != "conf" && p[2] != "neigh") {
		return ""
	}
	if slices.Contains([]string{"all", "default", "lo"}, p[3]) {
		return ""
	}
	return p[3]
}

// owns reports an error unless the variable belongs to a namespace that is made:
// the host's own must not be changed from here.
func (o *Options) owns(key string) error {
	p := parts(key)
	for _, s := range p {
		if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\x00") {
			return errs.New(errs.InvalidArgument, "sysctl %q is not a name of a kernel variable", key)
		}
	}
	if o.Net && p[0] == "net" && len(p) > 1 {
		return nil
	}
	if o.UTS && p[0] == "kernel" && len(p) == 2 && (p[1] == "domainname" || p[1] == "hostname") {
		return nil
	}
	if o.IPC && isIPC(p) {
		return nil
	}
	return errs.New(errs.InvalidArgument, "sysctl %q is not of a namespace that the pod has of its own: it would change the host", key)
}

// isIPC: the variables of an IPC namespace (ipc_namespaces(7)).
func isIPC(p []string) bool {
	if p[0] == "fs" && len(p) > 2 && p[1] == "mqueue" {
		return true
	}
	ours := []string{"msgmax", "msgmnb", "msgmni", "msg_next_id", "sem", "sem_next_id", "shmall", "shmmax", "shmmni", "shm_next_id", "shm_rmid_forced", "auto_msgmni"}
	return p[0] == "kernel" && len(p) == 2 && slices.Contains(ours, p[1])
}

// Sysctl sets kernel variables of the network namespace at ns.
func Sysctl(ns string, values map[string]string) error {
	o := Options{Net: true}
	for k := range values {
		if err := o.owns(k); err != nil {
			return err
		}
	}
	return In(ns, func() error { return setAll(values) })
}

// setAll sets variables in the namespaces of the calling thread, in the order of
// their names.
func setAll(values map[string]string) error {
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		// Not O_CREATE: a name that the kernel does not know is told as such.
		f, err := os.OpenFile(path.Join("/proc/sys", path.Join(parts(k)...)), os.O_WRONLY, 0)
		if errors.Is(err, os.ErrNotExist) {
			return errs.New(errs.InvalidArgument, "set sysctl %s: this kernel, or this namespace, has no such variable", k)
		}
		if err == nil {
			_, err = f.WriteString(values[k])
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return errs.New(errs.InvalidArgument, "set sysctl %s to %q: %w", k, values[k], err)
		}
	}
	return nil
}
