package cni

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berthd/berth/host/cni/builtin"
)

// do makes one call of a plugin: in this process if the plugin is a well-known one
// and its configuration holds nothing unknown, else by its program.
func (n *Networks) do(ctx context.Context, c call) ([]byte, error) {
	if n.own == nil || !n.inProcess(c) {
		return n.run.do(ctx, c)
	}
	bound, cancel := context.WithTimeout(ctx, n.cfg.Limit)
	defer cancel()
	out, err := n.own.Do(bound, c.builtin())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	return out, nil
}

func (c call) builtin() builtin.Call {
	return builtin.Call{Verb: c.verb, Type: c.typ, Conf: c.stdin, ContainerID: c.id, NetNS: c.netns, IfName: c.ifName, Ending: c.ending}
}

// inProcess reports whether this process makes a call. A program of that name which
// is not the stock one, but somebody's own, is always run; one that is missing is
// not missed.
func (n *Networks) inProcess(c call) bool {
	for _, a := range c.args { // arguments that plugins would act on
		if a[0] != "IgnoreUnknown" && !strings.HasPrefix(a[0], "K8S_") {
			return false
		}
	}
	if !n.own.Can(c.builtin()) {
		return false
	}
	path, err := n.run.find(c.network, c.typ)
	return err != nil || n.stock.is(path, c.typ)
}

// stock remembers which programs are the stock plugins.
type stock struct {
	mu   sync.Mutex
	seen map[string]bool // by path and what tells that the file is the same
}

// is asks a program who it is: called without a verb, the stock plugins say so on
// their stderr.
func (s *stock) is(path, typ string) bool {
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	sys, _ := st.Sys().(*syscall.Stat_t)
	key := fmt.Sprint(path, sys.Ino, st.Size(), sys.Mtim, sys.Ctim)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok, seen := s.seen[key]; seen {
		return ok
	}
	said := output{most: maxStderr}
	cmd := exec.Command(path)
	cmd.Env, cmd.Stderr, cmd.WaitDelay = []string{}, &said, time.Second
	t := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	defer t.Stop()
	ok := cmd.Run() == nil && strings.HasPrefix(said.b.String(), "CNI "+typ+" plugin ")
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	s.seen[key] = ok
	return ok
}
