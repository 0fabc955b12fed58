package cni

import (
	"math"
	"strconv"
	"strings"

	"github.com/berthd/berth/base/errs"
)

// suffixes are those of Kubernetes quantities (k8s.io/apimachinery, resource).
var suffixes = map[string]float64{
	"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
}

// The rates that a kubelet lets through, in bits a second.
const (
	minRate = 1e3
	maxRate = 1e15
)

// ParseRate reads a rate in bits a second, as the bandwidth annotations have it:
// a Kubernetes quantity such as 10M or 1.5Gi.
func ParseRate(text string) (uint64, error) {
	i := strings.LastIndexAny(text, "0123456789.") + 1
	mult, ok := suffixes[text[i:]]
	number := text[:i]
	v, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || strings.ContainsAny(number, "xXpP_nNiI") {
		return 0, errs.New(errs.InvalidArgument, "rate %q is not a quantity such as 10M (bits a second)", text)
	}
	v *= mult
	if math.IsNaN(v) || v < minRate || v > maxRate {
		return 0, errs.New(errs.InvalidArgument, "rate %q is out of range: 1k to 1P bits a second", text)
	}
	return uint64(math.Ceil(v)), nil
}
