package task

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A shim of somebody else writes what it has to say to a FIFO in its bundle, and does
// not start without it (protocols.md 1.10). Ours needs none, which saves a goroutine
// for each pod.

// maxShimLine bounds one line of a shim's log, in bytes.
const maxShimLine = 16 << 10

// followShim copies the log of a task's shim to the daemon's until the task is
// forgotten.
func (t *Tasks) followShim(task *Task) error {
	if own(task.row.Runtime) || task.row.Body.External {
		return nil
	}
	path := filepath.Join(t.bundle(task.key), "log")
	if err := unix.Mkfifo(path, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make log FIFO %s: %w", path, err)
	}
	// Open to write, too, so that it never ends while the shim lives.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open log FIFO: %w", err)
	}
	stop := context.AfterFunc(t.life, func() { _ = f.Close() })
	task.shimLog = func() { stop(); _ = f.Close() }
	t.wg.Add(1)
	// owner: Close waits for it through wg; forget and Close end it.
	go func() {
		defer t.wg.Done()
		r := bufio.NewReaderSize(f, 512)
		for {
			line, more, err := r.ReadLine()
			if err != nil {
				return
			}
			text := strings.Clone(string(line))
			for more && err == nil {
				line, more, err = r.ReadLine()
				text += string(line[:min(len(line), maxShimLine-min(maxShimLine, len(text)))])
			}
			t.log.Info("shim", "task", task.key, "says", text)
		}
	}()
	return nil
}
