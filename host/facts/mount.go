package facts

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Propagation is how mounts spread from and to a mount of the host
// (mount_namespaces(7)).
type Propagation struct {
	Mount  string // where it is mounted
	Shared bool
	Slave  bool // it receives from another peer group
}

// PropagationOf looks at the mount that holds a path of the host.
func PropagationOf(path string) (Propagation, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Propagation{}, err
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, real, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return Propagation{}, &os.PathError{Op: "look at", Path: real, Err: err}
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Propagation{}, err
	}
	defer f.Close() // only read from
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20) // options of an overlay may be long
	for s.Scan() {
		if p, id := parseMountinfo(s.Text()); id == st.Mnt_id {
			return p, nil
		}
	}
	if err := s.Err(); err != nil {
		return Propagation{}, err
	}
	return Propagation{}, &os.PathError{Op: "find the mount of", Path: real, Err: os.ErrNotExist}
}

// parseMountinfo reads one line of /proc/pid/mountinfo (proc(5)):
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
//	id parent dev root point options optional… -
func parseMountinfo(line string) (Propagation, uint64) {
	f := strings.Fields(line)
	if len(f) < 7 {
		return Propagation{}, 0
	}
	id, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return Propagation{}, 0
	}
	p := Propagation{Mount: f[4]}
	for _, o := range f[6:] {
		switch {
		case o == "-":
			return p, id
		case strings.HasPrefix(o, "shared:"):
			p.Shared = true
		case strings.HasPrefix(o, "master:"):
			p.Slave = true
		}
	}
	return p, id
}
