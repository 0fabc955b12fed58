// Package child owns the children of this process, and the orphans that come to it
// as a subreaper: it starts programs, reaps every zombie, and hands each exit to
// whoever claimed the pid, also when the exit comes before the claim. Nothing else
// in the process may wait for children; os/exec is not used beside it.
package child

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is how a process ended.
type Exit struct {
	Pid    int
	Status int // exit code, or 128 and the signal's number
	At     time.Time
}

// Reaper is the one waiter of the process.
type Reaper struct {
	mu     sync.Mutex
	claims map[int]func(Exit)
	early  map[int]Exit // exits nobody had claimed, kept while somebody may
	holds  int
}

// New returns a reaper; Run makes it work.
func New() *Reaper {
	return &Reaper{claims: map[int]func(Exit){}, early: map[int]Exit{}}
}

// BecomeSubreaper makes orphaned descendants come to this process (prctl(2)).
func BecomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	return nil
}

// Run reaps until stop is closed.
func (r *Reaper) Run(stop <-chan struct{}) {
	// One slot is enough: each sweep takes all there are.
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGCHLD)
	defer signal.Stop(ch)
	for {
		r.Sweep()
		select {
		case <-ch:
		case <-stop:
			return
		}
	}
}

// Sweep reaps all that is dead now and tells the claimants, in the order of death
// as far as the kernel tells it.
func (r *Reaper) Sweep() {
	for {
		r.mu.Lock()
		e, ok := reapOne()
		if !ok {
			r.mu.Unlock()
			return
		}
		fn := r.claims[e.Pid]
		delete(r.claims, e.Pid)
		if fn == nil && r.holds > 0 {
			r.early[e.Pid] = e
		}
		r.mu.Unlock()
		if fn != nil {
			fn(e)
		}
	}
}

func reapOne() (Exit, bool) {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return Exit{}, false
		}
		if !ws.Exited() && !ws.Signaled() {
			continue
		}
		status := ws.ExitStatus()
		if ws.Signaled() {
			status = 128 + int(ws.Signal())
		}
		return Exit{Pid: pid, Status: status, At: time.Now()}, true
	}
}

// Hold keeps the exits that nobody has claimed yet until release is called: take
// it before something is started whose pid will be known only later.
func (r *Reaper) Hold() (release func()) {
	r.mu.Lock()
	r.holds++
	r.mu.Unlock()
	var once sync.Once
	return func() {
		once.Do(func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.holds--; r.holds == 0 {
				clear(r.early)
			}
		})
	}
}

// Claim has fn called once with the exit of pid: at once if it is dead already,
// else by the reaper. fn must not block. The pid must be a child, or have been one
// since the oldest hold; a process that is neither is reported as dead with status
// 255, for it will never be ours to reap.
func (r *Reaper) Claim(pid int, fn func(Exit)) {
	r.mu.Lock()
	// A living child with this number is the claimant's: what we kept is an older
	// process that had the number before.
	if isChild(pid) {
		delete(r.early, pid)
		r.claims[pid] = fn
		r.mu.Unlock()
		return
	}
	e, ok := r.early[pid]
	delete(r.early, pid)
	r.mu.Unlock()
	if !ok {
		e = Exit{Pid: pid, Status: 255, At: time.Now()}
	}
	fn(e)
}

// isChild says whether pid is our child, living or zombie.
func isChild(pid int) bool {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// Program is a program to be started.
type Program struct {
	Path  string // absolute
	Args  []string
	Env   []string
	Dir   string
	Files []*os.File // 0, 1, 2, and so on; nil is /dev/null
	// Group puts it into a process group of its own.
	Group bool
	// DieWithUs has the kernel kill it when we die.
	DieWithUs bool
}

// Start starts a program. Its exit arrives on the channel, which has room for it.
func (r *Reaper) Start(p Program) (pid int, exit <-chan Exit, err error) {
	attr := &syscall.ProcAttr{Dir: p.Dir, Env: p.Env, Sys: &syscall.SysProcAttr{Setpgid: p.Group}}
	if p.DieWithUs {
		// The kernel means the starting thread; no thread of ours ever ends.
		attr.Sys.Pdeathsig = syscall.SIGKILL
	}
	null := -1
	for _, f := range p.Files {
		if f != nil {
			attr.Files = append(attr.Files, fdOf(f))
			continue
		}
		if null < 0 {
			if null, err = syscall.Open(os.DevNull, syscall.O_RDWR|syscall.O_CLOEXEC, 0); err != nil {
				return 0, nil, fmt.Errorf("open %s: %w", os.DevNull, err)
			}
			defer func() { _ = syscall.Close(null) }()
		}
		attr.Files = append(attr.Files, uintptr(null))
	}
	done := make(chan Exit, 1)
	// Under the lock, so that its exit cannot be reaped before it is claimed.
	r.mu.Lock()
	pid, err = syscall.ForkExec(p.Path, p.Args, attr)
	if err == nil {
		r.claims[pid] = func(e Exit) { done <- e }
	}
	r.mu.Unlock()
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", p.Path, err)
	}
	return pid, done, nil
}

// fdOf gives the descriptor without what os.File.Fd does: make the file blocking
// for everybody who shares it.
func fdOf(f *os.File) uintptr {
	var out uintptr
	rc, err := f.SyscallConn()
	if err != nil {
		return ^uintptr(0)
	}
	if err := rc.Control(func(fd uintptr) { out = fd }); err != nil {
		return ^uintptr(0)
	}
	return out
}
