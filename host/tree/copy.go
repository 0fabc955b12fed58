package tree

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxDepth bounds what Copy descends into: each level holds two handles.
const maxDepth = 2100

// Copy fills the empty directory dst with everything in src, and gives dst the
// attributes of src. Contents are shared with src where the file system can
// (reflink), holes stay holes, hard links inside src are hard links inside dst.
func Copy(ctx context.Context, dst, src string) error {
	s, err := OpenRoot(src)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	d, err := OpenRoot(dst)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	c := copier{ctx: ctx, root: d, links: map[inode]string{}}
	if err := c.dir(d, s, "", 0); err != nil {
		return fmt.Errorf("copy %s to %s: %w", src, dst, err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

type copier struct {
	ctx   context.Context
	root  int
	links map[inode]string // files with several names: where the first copy is
}

// dir copies what is in s to d, then the attributes of s.
func (c *copier) dir(d, s int, path string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d levels: %w", maxDepth, unix.ELOOP)
	}
	list, err := Entries(s)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := c.ctx.Err(); err != nil {
			return context.Cause(c.ctx)
		}
		if err := c.entry(d, s, path, e.Name, depth); err != nil {
			return fmt.Errorf("%q: %w", e.Name, err)
		}
	}
	return CopyAttr(d, "", s, "")
}

func (c *copier) entry(d, s int, path, name string, depth int) error {
	st, err := Stat(s, name)
	if err != nil {
		return err
	}
	full := path + name
	if Format(st.Mode) == unix.S_IFDIR {
		return c.subdir(d, s, full+"/", name, depth)
	}
	if st.Nlink > 1 {
		key := inode{st.Dev, st.Ino}
		if first, ok := c.links[key]; ok {
			return unix.Linkat(c.root, first, d, name, 0)
		}
		c.links[key] = full
	}
	return CopyFile(c.ctx, d, name, s, name)
}

func (c *copier) subdir(d, s int, path, name string, depth int) error {
	if err := unix.Mkdirat(d, name, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	sub, err := OpenDir(s, name)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer unix.Close(sub)
	to, err := OpenDir(d, name)
	if err != nil {
		return fmt.Errorf("open copy: %w", err)
	}
	defer unix.Close(to)
	return c.dir(to, sub, path, depth+1)
}

// CopyFile copies one file that is not a directory, with all attributes, to a
// name that is free.
func CopyFile(ctx context.Context, d int, dname string, s int, sname string) error {
	st, err := Stat(s, sname)
	if err != nil {
		return err
	}
	switch Format(st.Mode) {
	case unix.S_IFREG:
		return copyRegular(ctx, d, dname, s, sname, st)
	case unix.S_IFLNK:
		target, err := Readlink(s, sname)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, d, dname); err != nil {
			return fmt.Errorf("make symlink: %w", err)
		}
	case unix.S_IFDIR:
		return unix.EISDIR
	default:
		if err := unix.Mknodat(d, dname, Format(st.Mode)|0o600, int(st.Rdev)); err != nil {
			return fmt.Errorf("make node: %w", err)
		}
	}
	return CopyAttr(d, dname, s, sname)
}

func copyRegular(ctx context.Context, d int, dname string, s int, sname string, st unix.Stat_t) error {
	in, err := Open(s, sname, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	src := os.NewFile(uintptr(in), sname)
	defer src.Close()
	out, err := Open(d, dname, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create copy: %w", err)
	}
	dst := os.NewFile(uintptr(out), dname)
	defer dst.Close()
	if err := copyData(ctx, dst, src, st.Size); err != nil {
		return err
	}
	return CopyAttr(out, "", in, "")
}

// copyData copies the parts of src that hold data.
func copyData(ctx context.Context, dst, src *os.File, size int64) error {
	if size == 0 || unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	if err := dst.Truncate(size); err != nil {
		return fmt.Errorf("set size: %w", err)
	}
	const chunk = 64 << 20
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		start, err := unix.Seek(int(src.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find data: %w", err)
		}
		end, err := unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("find hole: %w", err)
		}
		end = min(end, start+chunk)
		if _, err := src.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(start, io.SeekStart); err != nil {
			return err
		}
		// os.File copies with copy_file_range(2) where it can.
		if n, err := io.CopyN(dst, src, end-start); err != nil {
			return fmt.Errorf("copy data at %d: %w", start+n, err)
		}
		off = end
	}
	return nil
}
