package cni

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	folderEvents = unix.IN_CREATE | unix.IN_DELETE | unix.IN_CLOSE_WRITE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	aboveEvents  = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ONLYDIR
)

// settleTime lets a burst of events pass, such as a writer's create, write and close.
const settleTime = 20 * time.Millisecond

// follow has an inotify handle (inotify(7)) on the folder and on every directory above
// it: so it is seen when the folder is made, moved, deleted and made again.
func (n *Networks) follow(ctx context.Context) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w (the limits are in /proc/sys/fs/inotify)", n.cfg.Dir, err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) }) // ends the read below
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		interest, err := arm(fd, n.cfg.Dir)
		if err != nil {
			return err
		}
		n.reload()
		for ours := false; !ours; {
			got, err := events.Read(buf)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("watch %s: %w", n.cfg.Dir, err)
			}
			ours = interest.in(buf[:got])
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settleTime):
		}
	}
}

// interests is what to look for in each watched directory: a name, or "" for all.
type interests map[int32]string

// in reports whether there is something of interest among events (inotify(7)):
//
//	wd int32 | mask uint32 | cookie uint32 | len uint32 | name, len bytes, zero filled
func (i interests) in(b []byte) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(b))
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if size > len(b) {
			return true
		}
		name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:size]), "\x00")
		if want, known := i[wd]; !known || want == "" || want == name {
			return true // also when events were lost, or a watch went with its directory
		}
		b = b[size:]
	}
	return false
}

// arm watches what there is of the path now. A directory that is watched already is
// the same watch. The order is from the top: what is made meanwhile further down is
// seen either as an event above it or by the next step.
func arm(fd int, dir string) (interests, error) {
	out := interests{}
	var up []string
	for d := dir; d != filepath.Dir(d); d = filepath.Dir(d) {
		up = append(up, d)
	}
	for i := len(up) - 1; i >= 0; i-- {
		if err := out.add(fd, filepath.Dir(up[i]), filepath.Base(up[i]), aboveEvents); err != nil {
			return nil, err
		}
	}
	return out, out.add(fd, dir, "", folderEvents)
}

func (i interests) add(fd int, dir, name string, mask uint32) error {
	wd, err := unix.InotifyAddWatch(fd, dir, mask)
	switch {
	case err == nil:
		i[int32(wd)] = name
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EACCES):
		return nil
	}
	return fmt.Errorf("watch %s: %w (the limits are in /proc/sys/fs/inotify)", dir, err)
}
