// Command berth is the container daemon and its command line.
package main

import (
	"os"

	"github.com/berthd/berth/cli"
	"github.com/berthd/berth/daemon"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], daemon.Command(), daemon.ConfigCommand()))
}
