package podspec

import "github.com/berthd/berth/base/errs"

// kindOf is the kind of an error that gets more words; what has none is ours.
func kindOf(err error) error {
	for _, k := range []error{errs.InvalidArgument, errs.FailedPrecondition, errs.NotFound} {
		if errs.Is(err, k) {
			return k
		}
	}
	return errs.Internal
}
