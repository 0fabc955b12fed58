package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// lockWait is how long the lock may be held still: what a killed owner was just
// starting has its files open until it becomes another program.
const lockWait = time.Second

// lockRoot lets one process at a time own the root, for as long as the returned
// file is open. The kernel frees the lock when the owner dies (flock(2)).
func lockRoot(root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for end := time.Now().Add(lockWait); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		owner, _ := os.ReadFile(f.Name())
		_ = f.Close()
		return nil, errs.New(errs.FailedPrecondition, "%s is in use by another berth (process %s): stop it, or give this one its own --root and --state",
			root, strings.TrimSpace(string(owner)))
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", root, err), f.Close())
	}
	return f, nil
}
