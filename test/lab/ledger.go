package lab

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Ledger proves that a test leaves nothing on the machine. Several tests run on
// one machine at once, so a thing is only held against a test that is known to be
// its own: it speaks of the test's directory, or it bears a name that the test has
// owned up to (Own), or one that its daemon told of (its containers' ids).
type Ledger struct {
	t   testing.TB
	dir string

	mu      sync.Mutex
	names   map[string]bool
	ipam    map[string]bool // directories of host-local, one file an address
	mounted map[string]bool // by the test itself
	before  map[string]bool // what bore such a name already when it was owned
	served  map[string]int  // sockets and state directories of daemons that run
}

// settle is how long what is being taken down may still be there at the end.
const settle = 5 * time.Second

// Ledger is the lab's ledger: compared when the test ends.
func (l *Lab) Ledger() *Ledger {
	if l.ledger == nil {
		l.ledger = NewLedger(l.T, l.Dir)
	}
	return l.ledger
}

// NewLedger begins a ledger of what refers to dir. It is compared when the test
// ends, and what is left is reported, and then ended or removed.
func NewLedger(t testing.TB, dir string) *Ledger {
	g := &Ledger{t: t, dir: dir, names: map[string]bool{}, ipam: map[string]bool{}, before: map[string]bool{}, served: map[string]int{}, mounted: map[string]bool{}}
	t.Cleanup(func() {
		for _, l := range g.Wait(settle) {
			t.Errorf("left behind: %s", l)
			l.sweep()
		}
	})
	return g
}

// Own says that names (of containers, cgroups, links, named network namespaces)
// are this test's. A link that is attached to one of that name is too.
func (g *Ledger) Own(names ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range names {
		if n == "" || g.names[n] {
			continue
		}
		g.names[n] = true
		for _, l := range g.named([]string{n}) {
			g.before[l.String()] = true
		}
	}
}

// Mounted says that the test itself has mounted something at target, and will
// unmount it.
func (g *Ledger) Mounted(target string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mounted[target] = true
}

// OwnIPAM says that a directory of host-local holds this test's addresses only.
func (g *Ledger) OwnIPAM(dir string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ipam[dir] = true
}

// serve says that a daemon of the test has a socket, and others directly in its
// state directory, until it ends.
func (g *Ledger) serve(socket, state string, until <-chan struct{}) {
	g.mu.Lock()
	g.served[socket]++
	g.served[state]++
	g.mu.Unlock()
	// owner: nobody needs to wait: it ends with the daemon, which its test stops.
	go func() {
		<-until
		g.mu.Lock()
		defer g.mu.Unlock()
		g.served[socket]--
		g.served[state]--
	}()
}

// Leftover is one thing that should be gone.
type Leftover struct {
	Kind string // process, mount, netns, link, cgroup, socket, fifo, address
	Name string
	pid  int
}

func (l Leftover) String() string { return l.Kind + " " + l.Name }

// sweep removes what was reported, so that one failed test does not become many.
// It is a best effort: the report has been made.
func (l Leftover) sweep() {
	switch l.Kind {
	case "process":
		_ = syscall.Kill(l.pid, syscall.SIGKILL)
	case "mount", "netns":
		_ = unix.Unmount(l.Name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	case "cgroup":
		_ = os.Remove(l.Name)
	case "socket", "fifo":
		_ = os.Remove(l.Name)
	}
}

// Wait gives what is left after at most limit; nothing, as soon as nothing is.
func (g *Ledger) Wait(limit time.Duration) []Leftover {
	end := time.Now().Add(limit)
	for {
		left := g.Left()
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Left is what is there now of this test's.
func (g *Ledger) Left() []Leftover {
	g.mu.Lock()
	defer g.mu.Unlock()
	var names []string
	for n := range g.names {
		names = append(names, n)
	}
	var out []Leftover
	for _, l := range g.named(names) {
		if !g.before[l.String()] {
			out = append(out, l)
		}
	}
	out = append(out, g.processes()...)
	out = append(out, g.mounts()...)
	out = append(out, g.sockets()...)
	out = append(out, g.fifos()...)
	return append(out, g.addresses()...)
}

// Must fails the test if anything is left.
func (g *Ledger) Must(t testing.TB) {
	t.Helper()
	if left := g.Wait(settle); len(left) > 0 {
		for _, l := range left {
			t.Errorf("left behind: %s", l)
		}
		t.FailNow()
	}
}

// named finds what is known by name only: cgroups, links, named namespaces.
func (g *Ledger) named(names []string) []Leftover {
	if len(names) == 0 {
		return nil
	}
	var out []Leftover
	for _, c := range cgroups() {
		for _, n := range names {
			if strings.Contains(n, "/") {
				if strings.Contains(c+"/", "/"+n+"/") {
					out = append(out, Leftover{Kind: "cgroup", Name: c})
					break
				}
				continue
			}
			if slices.ContainsFunc(strings.Split(c, "/"), func(part string) bool { return part == n || strings.Contains(part, n) && len(n) > 7 }) {
				out = append(out, Leftover{Kind: "cgroup", Name: c})
				break
			}
		}
	}
	links, _ := os.ReadDir("/sys/class/net")
	for _, l := range links {
		master, _ := os.Readlink(filepath.Join("/sys/class/net", l.Name(), "master"))
		// A bridge stays when its last pod goes, as its plugin wants it to; what is
		// attached to it must not.
		if slices.Contains(names, filepath.Base(master)) {
			out = append(out, Leftover{Kind: "link", Name: l.Name() + " on " + filepath.Base(master)})
		}
	}
	spaces, _ := os.ReadDir("/run/netns")
	for _, s := range spaces {
		if slices.ContainsFunc(names, func(n string) bool { return strings.Contains(s.Name(), n) }) {
			out = append(out, Leftover{Kind: "netns", Name: "/run/netns/" + s.Name()})
		}
	}
	return out
}

// cgroups lists every cgroup of every hierarchy, version 1 and 2.
func cgroups() []string {
	var out []string
	tops := map[string]bool{}
	for _, m := range mountTable("self") {
		if m.fs == "cgroup" || m.fs == "cgroup2" {
			tops[m.target] = true
		}
	}
	for top := range tops {
		_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err != nil { // it was removed meanwhile
				return nil
			}
			if d.IsDir() && p != top {
				out = append(out, p)
			}
			return nil
		})
	}
	slices.Sort(out)
	return out
}

type mountLine struct{ target, fs, line string }

// mountTable reads /proc/PID/mountinfo (proc_pid_mountinfo(5)).
func mountTable(pid string) []mountLine {
	data, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		return nil
	}
	var out []mountLine
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		dash := slices.Index(f, "-")
		if dash < 6 || len(f) < dash+2 {
			continue
		}
		out = append(out, mountLine{target: unescape(f[4]), fs: f[dash+1], line: line})
	}
	return out
}

func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// refers says whether a text speaks of the test's directory or a thing in it.
func (g *Ledger) refers(text string) bool {
	for {
		i := strings.Index(text, g.dir)
		if i < 0 {
			return false
		}
		text = text[i+len(g.dir):]
		if text == "" || !isNameByte(text[0]) {
			return true
		}
	}
}

func isNameByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_'
}

func (g *Ledger) mounts() []Leftover {
	var out []Leftover
	for _, m := range mountTable("self") {
		if g.refers(m.line) && !g.mounted[m.target] {
			kind := "mount"
			if m.fs == "nsfs" {
				kind = "netns"
			}
			out = append(out, Leftover{Kind: kind, Name: m.target})
		}
	}
	return out
}

// processes finds those that were started with the directory, stand in it, or
// have a root that was mounted from it: shims, clients, plugins, and whatever
// runs in a container.
func (g *Ledger) processes() []Leftover {
	own, _ := os.Readlink("/proc/self/ns/mnt")
	dirs, _ := os.ReadDir("/proc")
	var out []Leftover
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() || ancestor(pid) {
			continue
		}
		if _, ours := running.Load(pid); ours { // its Stop says so if it does not end
			continue
		}
		if why := g.process(d.Name(), own); why != "" {
			cmd, _ := os.ReadFile("/proc/" + d.Name() + "/cmdline")
			text := strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
			out = append(out, Leftover{Kind: "process", Name: fmt.Sprintf("%d (%s): %.300s", pid, why, text), pid: pid})
		}
	}
	return out
}

func (g *Ledger) process(pid, ownMounts string) string {
	read := func(name string) string {
		data, _ := os.ReadFile("/proc/" + pid + "/" + name)
		return string(bytes.ReplaceAll(data, []byte{0}, []byte{'\n'}))
	}
	link := func(name string) string { s, _ := os.Readlink("/proc/" + pid + "/" + name); return s }
	if stat := read("stat"); stat == "" || strings.HasPrefix(stat[strings.LastIndexByte(stat, ')')+1:], " Z") {
		return ""
	}
	switch {
	case g.refers(read("cmdline")):
		return "command line"
	case g.refers(link("cwd")), g.refers(link("root")), g.refers(link("exe")):
		return "directory"
	case strings.Contains(read("environ"), "CNI_") && g.refers(read("environ")):
		return "network plugin"
	}
	if ns := link("ns/mnt"); ns == "" || ns == ownMounts {
		return ""
	}
	for _, m := range mountTable(pid) {
		if m.target == "/" {
			if g.refers(m.line) {
				return "root file system"
			}
			return ""
		}
	}
	return ""
}

// ancestor tells our own parents, whose command line may hold anything.
func ancestor(pid int) bool {
	for p := os.Getppid(); p > 1; {
		if p == pid {
			return true
		}
		data, err := os.ReadFile("/proc/" + strconv.Itoa(p) + "/stat")
		if err != nil {
			return false
		}
		f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		p, _ = strconv.Atoi(f[1])
	}
	return false
}

// sockets finds those that somebody has bound below the directory, but for those
// that a daemon of the test has itself.
func (g *Ledger) sockets() []Leftover {
	data, _ := os.ReadFile("/proc/net/unix")
	seen := map[string]bool{}
	var out []Leftover
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 8 || !g.refers(f[7]) || seen[f[7]] {
			continue
		}
		seen[f[7]] = true
		// Its own sockets lie beside its address, or directly in its state.
		if g.served[strings.TrimSuffix(f[7], ".ttrpc")] > 0 || g.served[filepath.Dir(f[7])] > 0 {
			continue
		}
		out = append(out, Leftover{Kind: "socket", Name: f[7]})
	}
	return out
}

// fifos finds FIFOs and socket files that are left below the directories of
// daemons: those of a test itself may lie anywhere else in its directory.
func (g *Ledger) fifos() []Leftover {
	var out []Leftover
	states, _ := filepath.Glob(filepath.Join(g.dir, "state*"))
	for _, state := range states {
		_ = filepath.WalkDir(state, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			switch {
			case d.Type()&fs.ModeNamedPipe != 0:
				out = append(out, Leftover{Kind: "fifo", Name: p})
			case d.Type()&fs.ModeSocket != 0 && filepath.Base(filepath.Dir(p)) == "s":
				out = append(out, Leftover{Kind: "socket", Name: p})
			}
			return nil
		})
	}
	return out
}

// addresses finds what host-local has given out and not got back.
func (g *Ledger) addresses() []Leftover {
	var out []Leftover
	for dir := range g.ipam {
		_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.Count(d.Name(), ".")+strings.Count(d.Name(), ":") >= 2 && !strings.HasPrefix(d.Name(), "last_") {
				out = append(out, Leftover{Kind: "address", Name: p})
			}
			return nil
		})
	}
	return out
}
