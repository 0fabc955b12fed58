// Package id makes and checks the identifiers of namespaces, containers, execs,
// sandboxes and leases.
package id

import (
	"crypto/rand"
	"encoding/hex"
	"regexp"

	"github.com/berthd/berth/base/errs"
)

// MaxLength is the longest identifier, in bytes, that containerd's API accepts.
const MaxLength = 76

var pattern = regexp.MustCompile(`^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$`)

// Check says whether s is a valid identifier; what names the thing in the error,
// as in "namespace". The error is of kind InvalidArgument.
func Check(what, s string) error {
	switch {
	case s == "":
		return errs.New(errs.InvalidArgument, "%s must not be empty", what)
	case len(s) > MaxLength:
		return errs.New(errs.InvalidArgument, "%s %.20q… has %d characters, at most %d are allowed", what, s, len(s), MaxLength)
	case !pattern.MatchString(s):
		return errs.New(errs.InvalidArgument, "%s %q is not valid: use letters and digits, joined by single '.', '_' or '-'", what, s)
	}
	return nil
}

// New returns n random bytes as hex. It panics if the kernel has no randomness,
// which Linux does not let happen after boot.
func New(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}
