package task

import (
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
