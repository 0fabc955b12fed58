package compat

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/lab"
)

// TestTreesAreEqual: a Debian image in several layers, with all that a layer can
// hold, is the same tree file by file whether berth or stock containerd unpacks it.
func TestTreesAreEqual(t *testing.T) {
	l := lab.New(t)
	reg := l.Registry()
	oci := filepath.Join(l.Dir, "oci")
	lab.Debian(t, oci)
	ref := func(name string) string { return reg.Host + "/library/" + name + ":latest" }
	for _, name := range []string{"debian", "odd"} {
		lab.Run(t, lab.Tool(t, "skopeo"), "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", "oci:"+oci+":"+name, "docker://"+ref(name))
	}
	d, peer := l.Daemon(), l.Containerd()
	want := mounted(t, filepath.Join(l.Dir, "peer"), ref("debian"), "overlayfs", peer.MustCtr)
	if len(want) < 8000 {
		t.Fatalf("only %d files: the image is not what it should be", len(want))
	}
	t.Logf("%d files", len(want))
	differ(t, mounted(t, filepath.Join(l.Dir, "berth"), ref("debian"), "overlayfs", d.MustCtr), want)
	// By the client: content, snapshot and diff services.
	inClient := func(args ...string) string { return d.MustCtr(append([]string{"-n", "client"}, args...)...) }
	differ(t, mounted(t, filepath.Join(l.Dir, "client"), ref("debian"), "overlayfs", inClient, "--local"), want)

	want = mounted(t, filepath.Join(l.Dir, "peer-odd"), ref("odd"), "native", peer.MustCtr, "--local")
	differ(t, mounted(t, filepath.Join(l.Dir, "berth-odd"), ref("odd"), "native", d.MustCtr), want)
}

// mounted pulls an image and reads its tree. Stock containerd unpacks with its
// default snapshotter only, unless its client does it (--local).
func mounted(t *testing.T, dir, ref, snapshotter string, ctr func(...string) string, more ...string) map[string]file {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ctr(slices.Concat([]string{"images", "pull", "--plain-http", "--snapshotter", snapshotter}, more, []string{ref})...)
	ctr("images", "mount", "--snapshotter", snapshotter, ref, dir)
	defer ctr("images", "unmount", "--snapshotter", snapshotter, "--rm", dir)
	return tree(t, dir)
}

// file is what is compared of one file.
type file struct {
	Mode    uint32
	UID     uint32
	GID     uint32
	Device  uint64
	Size    int64
	Time    syscall.Timespec
	Target  string // of a link
	Content [32]byte
	Xattrs  string
	Links   string // all names of the same file, if there are several
}

// tree reads all files below dir, the root itself included.
func tree(t *testing.T, dir string) map[string]file {
	t.Helper()
	out := map[string]file{}
	names := map[uint64][]string{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		f, ino, err := readFile(p)
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		if f.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			names[ino] = append(names[ino], rel)
		}
		out[rel] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, all := range names {
		if len(all) > 1 {
			slices.Sort(all)
			for _, n := range all {
				f := out[n]
				f.Links = strings.Join(all, " ")
				out[n] = f
			}
		}
	}
	return out
}

func readFile(p string) (f file, ino uint64, err error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(p, &st); err != nil {
		return f, 0, err
	}
	f = file{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Time: st.Mtim}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		f.Size = st.Size
		h := sha256.New()
		r, err := os.Open(p)
		if err != nil {
			return f, 0, err
		}
		if _, err := io.Copy(h, r); err != nil {
			return f, 0, err
		}
		if err := r.Close(); err != nil {
			return f, 0, err
		}
		f.Content = [32]byte(h.Sum(nil))
	case syscall.S_IFLNK:
		if f.Target, err = os.Readlink(p); err != nil {
			return f, 0, err
		}
	case syscall.S_IFCHR, syscall.S_IFBLK:
		f.Device = st.Rdev
	case syscall.S_IFDIR:
		// A directory that has no entry in the layers has the time of the unpacking.
		if age := time.Since(time.Unix(st.Mtim.Unix())); age > 0 && age < time.Hour {
			f.Time = syscall.Timespec{}
		}
	}
	f.Xattrs, err = xattrs(p)
	return f, st.Ino, err
}

func xattrs(p string) (string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, list)
	if err != nil {
		return "", err
	}
	var all []string
	for _, name := range bytes.Split(list[:n], []byte{0}) {
		if len(name) == 0 || bytes.HasPrefix(name, []byte("trusted.overlay.")) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, string(name), value)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, " "), nil
}

func differ(t *testing.T, got, want map[string]file) {
	t.Helper()
	bad := 0
	for _, name := range slices.Sorted(maps.Keys(want)) {
		g, there := got[name]
		if want[name].Time == (syscall.Timespec{}) {
			g.Time = syscall.Timespec{} // a layer has only what is in the directory: berth keeps the time it had
		}
		switch {
		case !there:
			t.Errorf("%q is missing", name)
		case g != want[name]:
			t.Errorf("%q is\n  %+v\nnot\n  %+v", name, g, want[name])
		default:
			continue
		}
		if bad++; bad > 20 {
			t.Fatal("and more")
		}
	}
	for name := range got {
		if _, there := want[name]; !there {
			t.Errorf("%q should not be there", name)
		}
	}
}
