// Command berth-shim is the program that outlives the daemon: see package shim.
package main

import (
	"os"

	"github.com/berthd/berth/shim"
)

func main() { os.Exit(shim.Main(os.Args)) }
