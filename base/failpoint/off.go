//go:build !failpoint

// Package failpoint names the places where a crash would hurt most. In a normal
// build a point costs nothing; in a build with the tag failpoint, the environment
// variable BERTH_FAILPOINT="NAME=kill" (or "NAME=kill@3", the third hit) ends the
// process there as SIGKILL would, and "NAME=error" makes Err fail.
//
// test/crash finds every point by searching the source for the calls, so names
// are string literals: area.step, as in "pull.blob.renamed".
package failpoint

// Here is a kill point.
func Here(name string) {}

// Err is a kill point that can also fail.
func Err(name string) error { return nil }
