package builtin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/base/keylock"
)

// stores are the folders of host-local. One folder is one network's:
//
//	10.1.0.7             a taken address: the container's id, CR LF, the interface
//	last_reserved_ip.0   the address last given from the first set of ranges
//	lock                 who changes the folder has flock(2) on this
type stores struct {
	turns keylock.Map // before the lock file: its waiters each hold a thread
}

// locked runs f while it has the folder to itself, before other programs too.
func (s *stores) locked(ctx context.Context, dir string, f func() error) error {
	done, err := s.turns.Lock(ctx, dir)
	if err != nil {
		return fmt.Errorf("wait for %s: %w", dir, err)
	}
	defer done()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := unix.Open(filepath.Join(dir, "lock"), unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC, 0o750)
	if err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	defer unix.Close(lock)
	// Not the waiting kind: nothing would end it, should another program never let go.
	for step := time.Millisecond; ; step = min(2*step, 20*time.Millisecond) {
		err = unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s, which another program holds: %w", filepath.Join(dir, "lock"), context.Cause(ctx))
		case <-time.After(step):
		}
	}
}

// key is the content of a taken address's file.
func key(id, ifName string) string { return strings.TrimSpace(id) + "\r\n" + ifName }

// address gives a pod one address of each set of ranges.
func (p *Plugins) address(ctx context.Context, c Call) (*types100.Result, error) {
	conf, err := readIPAM(c)
	if err != nil {
		return nil, err
	}
	asked, err := conf.asked()
	if err != nil {
		return nil, err
	}
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: conf.IPAM.Routes}
	dir := filepath.Join(conf.IPAM.DataDir, conf.Name)
	err = p.stores.locked(ctx, dir, func() error {
		held, err := holdings(dir, key(c.ContainerID, c.IfName))
		if err != nil {
			return err
		}
		var given []netip.Addr
		for n, set := range conf.IPAM.Ranges {
			a, err := give(dir, c, set, n, held, &asked)
			if err != nil {
				return errors.Join(fmt.Errorf("take an address of range %d: %w", n, err), free(dir, given))
			}
			failpoint.Here("cni.address.given")
			given = append(given, a)
			r.IPs = append(r.IPs, ipConfig(a, find(set, a)))
		}
		if len(asked) > 0 {
			return errors.Join(fmt.Errorf("addresses %v are asked for, and in no range", asked), free(dir, given))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// give takes an address out of a set: one that is asked for, or the next free one
// after the last that was given.
func give(dir string, c Call, set []ipRange, n int, held []netip.Addr, asked *[]netip.Addr) (netip.Addr, error) {
	for i, a := range *asked {
		r := find(set, a)
		if r == nil {
			continue
		}
		*asked = slices.Delete(*asked, i, i+1)
		if a == r.Gateway {
			return a, fmt.Errorf("requested ip %s is subnet's gateway", a)
		}
		ok, err := reserve(dir, c, a, n)
		if err == nil && !ok {
			err = fmt.Errorf("requested IP address %s is not available in range set %s", a, describe(set))
		}
		return a, err
	}
	for _, a := range held {
		if find(set, a) != nil {
			return a, fmt.Errorf("%s has been allocated to %s, duplicate allocation is not allowed", a, c.ContainerID)
		}
	}
	var found netip.Addr
	err := each(set, lastGiven(dir, n), func(a netip.Addr) (bool, error) {
		ok, err := reserve(dir, c, a, n)
		if ok {
			found = a
		}
		return ok, err
	})
	if err == nil && !found.IsValid() {
		err = fmt.Errorf("no IP addresses available in range set: %s", describe(set))
	}
	return found, err
}

// each goes once through a set's addresses but the gateways, from the one after from,
// round to where it started, until f says that it is done.
func each(set []ipRange, from netip.Addr, f func(netip.Addr) (bool, error)) error {
	at, cur := 0, netip.Addr{}
	for i := range set {
		if from.IsValid() && set[i].has(from) {
			at, cur = i, from
			break
		}
	}
	var start netip.Addr
	for {
		switch {
		case !cur.IsValid():
			cur = set[at].Start
		case cur == set[at].End:
			at = (at + 1) % len(set)
			cur = set[at].Start
		default:
			cur = cur.Next()
		}
		if !start.IsValid() {
			start = cur
		} else if cur == start {
			return nil
		}
		if cur == set[at].Gateway {
			continue
		}
		if done, err := f(cur); done || err != nil {
			return err
		}
	}
}

func lastGiven(dir string, n int) netip.Addr {
	data, err := os.ReadFile(filepath.Join(dir, "last_reserved_ip."+strconv.Itoa(n)))
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(string(data)) // what is no address is as good as none
	return a.Unmap()
}

// reserve takes an address unless it is taken.
func reserve(dir string, c Call, a netip.Addr, n int) (bool, error) {
	path := filepath.Join(dir, a.String())
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = f.WriteString(key(c.ContainerID, c.IfName))
	if err = errors.Join(err, f.Close()); err == nil {
		err = overwrite(filepath.Join(dir, "last_reserved_ip."+strconv.Itoa(n)), a.String())
	}
	if err != nil {
		return false, errors.Join(err, os.Remove(path))
	}
	return true, nil
}

// overwrite gives a file other content, in place: emptying it first would free its
// block, which on a disk that is told of free blocks takes long.
func overwrite(path, text string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt([]byte(text), 0)
	}
	if err == nil && st.Size() > int64(len(text)) {
		err = f.Truncate(int64(len(text)))
	}
	return errors.Join(err, f.Close())
}

// holdings are the addresses whose files say key.
func holdings(dir, key string) ([]netip.Addr, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, e := range all {
		a, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		if holds(dir, a, key) {
			out = append(out, a)
		}
	}
	return out, nil
}

// holds reports whether an address is taken by key, or by its id in the form of old
// versions, without the interface.
func holds(dir string, a netip.Addr, key string) bool {
	data, err := os.ReadFile(filepath.Join(dir, a.String()))
	if err != nil {
		return false
	}
	id, _, _ := strings.Cut(key, "\r\n")
	have := strings.TrimSpace(string(data))
	return have == strings.TrimSpace(key) || have == id
}

func free(dir string, all []netip.Addr) error {
	var errs []error
	for _, a := range all {
		if err := os.Remove(filepath.Join(dir, a.String())); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// release gives a pod's addresses back. given are those that the ADD is known to have
// got: if they are the pod's, they are all, and the folder need not be searched.
func (p *Plugins) release(ctx context.Context, c Call, given []netip.Addr) error {
	conf, err := readIPAM(c)
	if err != nil {
		return err
	}
	dir, k := filepath.Join(conf.IPAM.DataDir, conf.Name), key(c.ContainerID, c.IfName)
	return p.stores.locked(ctx, dir, func() error {
		held := given
		if len(given) == 0 || slices.ContainsFunc(given, func(a netip.Addr) bool { return !holds(dir, a, k) }) {
			if held, err = holdings(dir, k); err != nil {
				return err
			}
		}
		failpoint.Here("cni.address.release")
		return free(dir, held)
	})
}
