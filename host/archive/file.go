package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/tree"
)

// flushEach is after how many bytes of one file its write-back is started, so
// that the flush before a commit finds little left to do.
const flushEach = 8 << 20

// fileWriter writes the contents of one file.
type fileWriter struct {
	fd      int
	size    int64
	off     int64
	flushed int64
	sparse  bool
}

func (w *fileWriter) write(p []byte) error {
	if w.sparse && zero(p) {
		w.off += int64(len(p))
		return nil
	}
	for len(p) > 0 {
		n, err := unix.Pwrite(w.fd, p, w.off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write at %d: %w", w.off, err)
		}
		w.off += int64(n)
		p = p[n:]
	}
	if w.off-w.flushed >= flushEach {
		// Only a hint: an error shows again at the flush.
		_ = unix.SyncFileRange(w.fd, w.flushed, w.off-w.flushed, unix.SYNC_FILE_RANGE_WRITE)
		w.flushed = w.off
	}
	return nil
}

func (w *fileWriter) finish() error {
	if w.off != w.size {
		return errs.New(errs.InvalidArgument, "the contents end at %d of %d bytes", w.off, w.size)
	}
	if w.sparse {
		if err := unix.Ftruncate(w.fd, w.size); err != nil {
			return fmt.Errorf("set size %d: %w", w.size, err)
		}
	}
	return nil
}

var zeros [4096]byte

func zero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// sparse reports whether the entry has a map of holes (GNU, old and PAX forms).
func sparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	_, map1 := hdr.PAXRecords["GNU.sparse.major"]
	_, map0 := hdr.PAXRecords["GNU.sparse.map"]
	return map1 || map0
}

const (
	paxXattr   = "SCHILY.xattr."
	aclDefault = "system.posix_acl_default"
)

// xattrs are the extended attributes of an entry that may be set: nothing in
// trusted. (overlay's own marks among them), nor what overlay would take for its
// own in a user namespace. They are left out, as the peers do.
func (a *applier) xattrs(hdr *tar.Header) ([]tree.Xattr, error) {
	var out []tree.Xattr
	for k, v := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok || strings.HasPrefix(name, "trusted.") {
			continue
		}
		if opaqueXattr(a.o.Whiteout) == "user.overlay.opaque" && tree.OverlayOwn(name) {
			continue
		}
		if len(name) > 255 || len(v) > 64<<10 { // XATTR_NAME_MAX, XATTR_SIZE_MAX
			return nil, errs.New(errs.InvalidArgument, "extended attribute %.64q: name %d and value %d bytes, at most 255 and 65536 are possible", name, len(name), len(v))
		}
		out = append(out, tree.Xattr{Name: name, Value: []byte(v)})
	}
	slices.SortFunc(out, func(x, y tree.Xattr) int { return strings.Compare(x.Name, y.Name) })
	return out, nil
}

// setXattrs sets attributes of dir/name, or of the handle dir. What the file
// system or the type of file cannot have is left out.
func setXattrs(dir int, name string, typeflag byte, list []tree.Xattr) error {
	plain := typeflag == tar.TypeReg || typeflag == tar.TypeDir
	for _, x := range list {
		err := tree.SetXattr(dir, name, x.Name, x.Value)
		if err == nil || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) && !plain && strings.HasPrefix(x.Name, "user.") {
			continue
		}
		return fmt.Errorf("set extended attribute %q (%d bytes): %w", x.Name, len(x.Value), err)
	}
	return nil
}

// readUmask reads the umask of this process, which can only be asked for by
// setting it, or here (proc_pid_status(5)).
func readUmask() (uint32, error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("read umask: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			return uint32(n), err
		}
	}
	return 0o777, nil // not told: set every mode
}

// typeName is the word for an entry in messages.
func typeName(flag byte) string {
	switch flag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return "file"
	case tar.TypeDir:
		return "directory"
	case tar.TypeSymlink:
		return "symlink"
	case tar.TypeLink:
		return "hardlink"
	case tar.TypeChar, tar.TypeBlock:
		return "device"
	case tar.TypeFifo:
		return "fifo"
	}
	return "entry"
}

// byTurn lists the keys by their values.
func byTurn(m map[string]int) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b string) int { return m[a] - m[b] })
	return out
}
