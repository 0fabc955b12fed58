package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// holdName is berth-shim's name inside.
const holdName = "berth-shim"

// rootfs is the root file system of all built-in containers: the shim program and
// directories to mount on, read-only.
//
//	ROOT/infra/<inode>-<mtime>/  berth-shim  dev/ proc/ sys/ etc/ …
type rootfs struct {
	mu   sync.Mutex
	path string
}

// make returns the directory; it is made when the first pod needs it, and anew
// when the program has changed.
func (r *rootfs) make(root, shim string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st, err := os.Stat(shim)
	if err != nil {
		return "", err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("stat %s: no inode", shim)
	}
	dir := filepath.Join(root, "infra", fmt.Sprintf("%d-%x", sys.Ino, st.ModTime().UnixNano()))
	if r.path == dir {
		return dir, nil
	}
	if _, err := os.Stat(dir); err == nil {
		r.path = dir
		return dir, nil
	}
	// Made under another name first: a half-made one is never used.
	next := dir + ".next"
	if err := os.RemoveAll(next); err != nil {
		return "", err
	}
	for _, d := range []string{"dev/shm", "proc", "sys", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(next, d), 0o755); err != nil {
			return "", err
		}
	}
	for _, f := range []string{"resolv.conf", "hosts", "hostname"} {
		if err := os.WriteFile(filepath.Join(next, "etc", f), nil, 0o644); err != nil {
			return "", err
		}
	}
	if err := link(shim, filepath.Join(next, holdName)); err != nil {
		return "", err
	}
	if err := os.Rename(next, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	r.path = dir
	return dir, nil
}

// link shares the program with the shims that run, so that its pages are in memory
// once; on another file system it is copied.
func link(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // only read from
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
