//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

type action struct {
	what string
	at   int
	hits int
}

var (
	mu      sync.Mutex
	actions = parse(os.Getenv("BERTH_FAILPOINT"))
)

// parse reads "name=kill[@n],name=error[@n]".
func parse(s string) map[string]*action {
	out := map[string]*action{}
	for _, part := range strings.Split(s, ",") {
		name, what, ok := strings.Cut(part, "=")
		if !ok {
			continue
		}
		what, at, _ := strings.Cut(what, "@")
		n, err := strconv.Atoi(at)
		if err != nil {
			n = 1
		}
		out[name] = &action{what: what, at: n}
	}
	return out
}

func hit(name string) string {
	mu.Lock()
	defer mu.Unlock()
	a := actions[name]
	if a == nil {
		return ""
	}
	if a.hits++; a.hits != a.at {
		return ""
	}
	fmt.Fprintf(os.Stderr, "failpoint %s: %s\n", name, a.what)
	return a.what
}

// Here is a kill point.
func Here(name string) {
	if hit(name) == "kill" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// Err is a kill point that can also fail.
func Err(name string) error {
	switch hit(name) {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "error":
		return fmt.Errorf("failpoint %s", name)
	}
	return nil
}
