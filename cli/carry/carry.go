// Package carry copies files into and out of a directory tree that somebody else
// may change meanwhile, as a container's: every path is resolved inside the tree,
// by openat2(2) and os.Root, and what is on the way is a tar stream.
package carry

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// resolve opens a path below root, following links inside it, and returns a name
// of the open file.
func resolve(root, name string, flags uint64) (*os.File, error) {
	base, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(base)
	rel := strings.TrimPrefix(path.Clean("/"+name), "/")
	if rel == "" {
		rel = "."
	}
	fd, err := unix.Openat2(base, rel, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// Pack writes what is at a path of the tree as a tar stream: a directory with its
// own name first, "." for its contents alone; a link as a link unless follow is set.
func Pack(w io.Writer, root, name string, follow bool) error {
	parent, base := path.Split(path.Clean("/" + name))
	contents := strings.HasSuffix(name, "/.") || base == ""
	if follow || contents {
		f, err := resolve(root, name, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := os.Stat(procPath(f))
		if err != nil {
			return err
		}
		return pack(w, procPath(f), st, base, contents)
	}
	dir, err := resolve(root, parent, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	r, err := os.OpenRoot(procPath(dir))
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return packRoot(tar.NewWriter(w), r, base, base)
}

func pack(w io.Writer, at string, st fs.FileInfo, base string, contents bool) error {
	tw := tar.NewWriter(w)
	if !st.IsDir() {
		f, err := os.Open(at)
		if err != nil {
			return err
		}
		defer f.Close()
		return errors.Join(packFile(tw, f, st, base), tw.Close())
	}
	r, err := os.OpenRoot(at)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if contents {
		base = "."
	}
	return packRoot(tw, r, ".", base)
}

// packRoot writes a file or a tree of r under the name as.
func packRoot(tw *tar.Writer, r *os.Root, name, as string) error {
	err := fs.WalkDir(r.FS(), name, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(name, p)
		if err != nil {
			return err
		}
		st, err := r.Lstat(p)
		if err != nil {
			return err
		}
		return packOne(tw, r, p, path.Join(as, rel), st)
	})
	return errors.Join(err, tw.Close())
}

func packOne(tw *tar.Writer, r *os.Root, name, as string, st fs.FileInfo) error {
	switch {
	case st.Mode().IsRegular():
		f, err := r.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return packFile(tw, f, st, as)
	case st.Mode()&fs.ModeSymlink != 0:
		to, err := r.Readlink(name)
		if err != nil {
			return err
		}
		return header(tw, st, as, to)
	case st.IsDir():
		return header(tw, st, as+"/", "")
	}
	return nil // devices, sockets and FIFOs stay where they are
}

func header(tw *tar.Writer, st fs.FileInfo, as, link string) error {
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = as, "", ""
	return tw.WriteHeader(h)
}

func packFile(tw *tar.Writer, f *os.File, _ fs.FileInfo, as string) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := header(tw, st, as, ""); err != nil {
		return err
	}
	if _, err := io.CopyN(tw, f, st.Size()); err != nil {
		return fmt.Errorf("%s changed while it was read: %w", as, err)
	}
	return nil
}

// Target is where a tar stream goes.
type Target struct {
	Root string // of the tree
	Path string // in the tree
	// Keep the owners that the stream says; else files are the caller's, root.
	Owners bool
}

// Unpack puts a stream of one file or tree where the target says, as cp(1) does: into
// a directory that is there, else under the target's name. A stream whose first
// name is "." is the contents of a directory.
func Unpack(r io.Reader, t Target) error {
	tr := tar.NewReader(r)
	first, err := tr.Next()
	if err != nil {
		return fmt.Errorf("read tar stream: %w", err)
	}
	at, rename, err := t.place(first)
	if err != nil {
		return err
	}
	defer at.Close()
	root, err := os.OpenRoot(procPath(at))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	base, _, _ := strings.Cut(path.Clean(first.Name), "/")
	for h := first; ; {
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		if rename != "" && base != "." {
			if rest, ok := strings.CutPrefix(name, base); ok && (rest == "" || rest[0] == '/') {
				name = rename + rest
			}
		} else if rename != "" {
			name = path.Join(rename, name)
		}
		if err := t.put(root, name, h, tr); err != nil {
			return err
		}
		if h, err = tr.Next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read tar stream: %w", err)
		}
	}
}

// place finds the directory to unpack in, and the new name of the first entry.
func (t Target) place(first *tar.Header) (*os.File, string, error) {
	if f, err := resolve(t.Root, t.Path, 0); err == nil {
		if st, err := os.Stat(procPath(f)); err == nil && st.IsDir() {
			return f, "", nil
		}
		_ = f.Close()
		if first.Typeflag == tar.TypeDir {
			return nil, "", errs.New(errs.InvalidArgument, "%s is a file: a directory cannot be copied onto it", t.Path)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, "", err
	} else if strings.HasSuffix(t.Path, "/") && first.Typeflag != tar.TypeDir {
		return nil, "", errs.New(errs.NotFound, "directory %s is not there", t.Path)
	}
	parent, base := path.Split(path.Clean("/" + t.Path))
	f, err := resolve(t.Root, parent, unix.O_DIRECTORY)
	return f, base, err
}

func (t Target) put(root *os.Root, name string, h *tar.Header, r io.Reader) (err error) {
	if name == "." {
		return nil
	}
	mode := h.FileInfo().Mode()
	if h.Typeflag != tar.TypeDir {
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		if st, err := root.Lstat(name); err == nil && !st.IsDir() {
			if err := root.Remove(name); err != nil {
				return err
			}
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err = root.MkdirAll(name, mode.Perm()); err == nil {
			err = root.Chmod(name, mode)
		}
	case tar.TypeReg:
		err = putFile(root, name, mode, r)
	case tar.TypeSymlink:
		err = root.Symlink(h.Linkname, name)
	default:
		return nil
	}
	if err == nil && t.Owners {
		err = root.Lchown(name, h.Uid, h.Gid)
	}
	if err == nil && h.Typeflag == tar.TypeReg {
		err = root.Chmod(name, mode) // after the owner, which takes setuid bits away
	}
	if err == nil && h.Typeflag != tar.TypeSymlink {
		err = root.Chtimes(name, h.ModTime, h.ModTime)
	}
	return err
}

func putFile(root *os.Root, name string, mode fs.FileMode, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode.Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
