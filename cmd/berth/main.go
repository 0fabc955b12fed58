// Command berth is the container daemon and its command line.
package main

import (
	"os"

	"github.com/berthd/berth/cli"
	"github.com/berthd/berth/daemon"
)

func main() {
	build := cli.Build{Version: daemon.Version, Revision: daemon.Revision}
	os.Exit(cli.Main(os.Args[1:], build, daemon.Command(), daemon.ConfigCommand(), daemon.DoctorCommand()))
}
