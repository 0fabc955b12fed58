package shim

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/berthd/berth/host/child"
)

// hold is the built-in infrastructure process, the init of a pod's PID namespace:
// it keeps that alive, buries orphans and ends by SIGTERM or SIGINT. It needs no
// file, no network and no privilege. (The action hold-input is for namespaces that
// are only being made: it ends with its stdin.)
func hold() {
	stop := make(chan struct{})
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	// owner: the process, which ends with it.
	go func() {
		<-end
		close(stop)
	}()
	child.New().Run(stop)
}
