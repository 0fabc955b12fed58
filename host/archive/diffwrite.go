package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/tree"
)

func openFile(dir int, name string) (*os.File, error) {
	fd, err := tree.Open(dir, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// layerWriter writes entries of the tree root.
type layerWriter struct {
	ctx   context.Context
	w     *tar.Writer
	root  int
	epoch time.Time
	links map[inode]string // files with several names: the one that holds the contents
	buf   []byte

	dir     int // the open directory of the last entry, -1: none
	dirPath string
}

func writeLayer(ctx context.Context, w io.Writer, root int, changes []pathChange, o DiffOptions) error {
	l := &layerWriter{ctx: ctx, w: tar.NewWriter(w), root: root, epoch: o.Epoch, links: map[inode]string{}, buf: make([]byte, 256<<10), dir: -1}
	defer l.leave()
	for _, c := range changes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := l.change(c); err != nil {
			return fmt.Errorf("%q: %w", clip(c.path), err)
		}
	}
	return l.w.Close()
}

func (l *layerWriter) leave() {
	if l.dir >= 0 {
		unix.Close(l.dir)
	}
	l.dir = -1
}

// enter opens the directory that a path is in.
func (l *layerWriter) enter(up string) (int, error) {
	if up == "" {
		return l.root, nil
	}
	if l.dir >= 0 && l.dirPath == up {
		return l.dir, nil
	}
	l.leave()
	fd, err := tree.OpenDir(l.root, up)
	if err != nil {
		return -1, fmt.Errorf("open its directory: %w", err)
	}
	l.dir, l.dirPath = fd, up
	return fd, nil
}

func (l *layerWriter) change(c pathChange) error {
	up, name := split(c.path)
	switch c.kind {
	case deleted:
		return l.mark(up, whiteoutPrefix+name)
	case opaque:
		return l.mark(c.path, whiteoutOpaque)
	}
	dir, err := l.enter(up)
	if err != nil {
		return err
	}
	st, err := tree.Stat(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return nil // gone since it was compared
	}
	if err != nil {
		return err
	}
	return l.file(dir, name, c.path, &st)
}

// mark writes a whiteout. It has no time of its own, so that it is reproducible.
func (l *layerWriter) mark(up, name string) error {
	if up != "" {
		name = up + "/" + name
	}
	return l.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

func (l *layerWriter) file(dir int, name, path string, st *unix.Stat_t) error {
	h := &tar.Header{
		Name: path, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: l.clamp(time.Unix(st.Mtim.Sec, st.Mtim.Nsec)), Format: tar.FormatPAX,
	}
	switch tree.Format(st.Mode) {
	case unix.S_IFREG:
		return l.regular(dir, name, h, st)
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, path+"/"
	case unix.S_IFLNK:
		to, err := tree.Readlink(dir, name)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, to
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if tree.Format(st.Mode) == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil // a socket lives only as long as its program
	}
	return l.header(dir, name, h, st)
}

// header writes the header, as a link if another name has been written.
func (l *layerWriter) header(dir int, name string, h *tar.Header, st *unix.Stat_t) error {
	var err error
	if h.PAXRecords, err = layerXattrs(dir, name); err != nil {
		return err
	}
	if st.Nlink > 1 && h.Typeflag != tar.TypeDir {
		key := inode{st.Dev, st.Ino}
		if first, ok := l.links[key]; ok {
			h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, first, 0, nil
		} else {
			l.links[key] = h.Name
		}
	}
	return l.w.WriteHeader(h)
}

func (l *layerWriter) regular(dir int, name string, h *tar.Header, st *unix.Stat_t) error {
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := l.header(dir, name, h, st); err != nil || h.Typeflag == tar.TypeLink || h.Size == 0 {
		return err
	}
	f, err := openFile(dir, name)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.CopyBuffer(onlyWriter{l.w}, onlyReader{io.LimitReader(f, st.Size)}, l.buf)
	if err != nil {
		return fmt.Errorf("copy contents: %w", err)
	}
	if n != st.Size {
		return errs.New(errs.Aborted, "the file shrank from %d to %d bytes while it was read", st.Size, n)
	}
	return nil
}

// onlyWriter and onlyReader keep io.CopyBuffer to the buffer.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)

func (l *layerWriter) clamp(t time.Time) time.Time {
	if !l.epoch.IsZero() && t.After(l.epoch) {
		return l.epoch
	}
	return t
}
