package task

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/host/shim"
)

// parseAddress splits a task API address such as ttrpc+unix:///run/x.sock.
func parseAddress(address string, version int) shim.Bootstrap {
	b := shim.Bootstrap{Version: version, Address: address, Protocol: "ttrpc"}
	if p, rest, ok := strings.Cut(address, "+"); ok && (p == "ttrpc" || p == "grpc") {
		b.Protocol, b.Address = p, rest
	}
	return b
}

// lastAddress is where the shim of a task is or was: as the row says or, if the
// daemon died before it wrote that, as the shim's start command left it in the
// bundle.
func (t *Tasks) lastAddress(task *Task) shim.Bootstrap {
	if task.row.Body.Address != "" {
		return bootstrapOf(task.row.Body)
	}
	text, err := os.ReadFile(filepath.Join(t.bundle(task.key), "address"))
	if err != nil {
		return shim.Bootstrap{} // it had not come so far
	}
	return parseAddress(strings.TrimSpace(string(text)), 2)
}
