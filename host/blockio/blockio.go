// Package blockio reads classes of block I/O: a file says which devices a class
// throttles and how its weight is, and what comes out is the part of an OCI spec.
// Devices are looked up when a class is used.
package blockio

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/berthd/berth/base/errs"
)

// Classes are those of one file, by name.
type Classes struct {
	file string
	all  map[string][]rule
}

// rule is one entry of a class: a weight of all devices, or limits of some.
//
//	Classes:
//	  slow:
//	    - Weight: 80
//	    - Devices: [/dev/vd[a-z]]
//	      Weight: 50
//	      ThrottleReadBps: 60M
//	      ThrottleWriteIOPS: 5k
type rule struct {
	Devices           []string
	Weight            *quantity
	ThrottleReadBps   *quantity
	ThrottleWriteBps  *quantity
	ThrottleReadIOPS  *quantity
	ThrottleWriteIOPS *quantity
}

// quantity is a number as Kubernetes writes it: 5000, 5k, 5M, 5Ki.
type quantity uint64

// UnmarshalJSON reads a number, in quotes or not.
func (q *quantity) UnmarshalJSON(text []byte) error {
	n, err := parse(strings.Trim(string(text), `"`))
	*q = quantity(n)
	return err
}

// units are the suffixes of quantities.
var units = []struct {
	suffix string
	factor float64
}{
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"k", 1e3}, {"K", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"", 1},
}

func parse(s string) (uint64, error) {
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(digits, 64)
		if err != nil || math.IsNaN(f) || f < 0 || f*u.factor > math.MaxInt64 || strings.ContainsAny(digits, "xXpPeEnN_ ") {
			break
		}
		return uint64(f * u.factor), nil
	}
	return 0, fmt.Errorf("%q is no quantity such as 5000, 5k or 5M", s)
}

// Weights of cfq's and bfq's (kernel: block/blk-throttle, cgroup-v1/blkio-controller.rst).
const minWeight, maxWeight = 10, 1000

// Load reads the classes of a file.
func Load(file string) (*Classes, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("classes of block I/O: %w", err)
	}
	all, err := read(text)
	if err != nil {
		return nil, errs.New(errs.InvalidArgument, "classes of block I/O in %s: %w", file, err)
	}
	return &Classes{file, all}, nil
}

func read(text []byte) (map[string][]rule, error) {
	var doc struct{ Classes map[string][]rule }
	if err := yaml.UnmarshalStrict(text, &doc); err != nil {
		return nil, err
	}
	for name, rules := range doc.Classes {
		for _, r := range rules {
			if err := r.check(); err != nil {
				return nil, fmt.Errorf("class %q: %w", name, err)
			}
		}
	}
	return doc.Classes, nil
}

func (r rule) check() error {
	if w := r.Weight; w != nil && *w != 0 && (*w < minWeight || *w > maxWeight) {
		return fmt.Errorf("weight %d is not between %d and %d", *w, minWeight, maxWeight)
	}
	throttled := r.ThrottleReadBps != nil || r.ThrottleWriteBps != nil || r.ThrottleReadIOPS != nil || r.ThrottleWriteIOPS != nil
	if throttled && len(r.Devices) == 0 {
		return fmt.Errorf("a limit needs Devices")
	}
	for _, d := range r.Devices {
		if _, err := filepath.Match(d, ""); err != nil || !filepath.IsAbs(d) {
			return fmt.Errorf("device %q is no absolute path or pattern", d)
		}
	}
	return nil
}

// Class is what a class means on this machine now. A device that it names and that
// is not there is passed over if others are.
func (c *Classes) Class(name string) (*specs.LinuxBlockIO, error) {
	rules, ok := c.all[name]
	if !ok {
		return nil, errs.New(errs.InvalidArgument, "block I/O class %q is not in %s", name, c.file)
	}
	out := &specs.LinuxBlockIO{}
	for _, r := range rules {
		if len(r.Devices) == 0 {
			if r.Weight != nil {
				out.Weight = new(uint16(*r.Weight))
			}
			continue
		}
		found := r.devices()
		if len(found) == 0 {
			return nil, errs.New(errs.FailedPrecondition, "block I/O class %q: %s: no such block device", name, strings.Join(r.Devices, ", "))
		}
		for _, d := range found {
			r.add(out, d)
		}
	}
	return out, nil
}

type device struct{ major, minor int64 }

// devices are the block devices that the rule's patterns match.
func (r rule) devices() []device {
	var out []device
	for _, pattern := range r.Devices {
		paths, _ := filepath.Glob(pattern) // checked when it was read
		for _, p := range paths {
			var st unix.Stat_t
			if unix.Stat(p, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
				continue
			}
			d := device{int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))}
			if !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
	}
	return out
}

func (r rule) add(to *specs.LinuxBlockIO, d device) {
	if r.Weight != nil {
		w := specs.LinuxWeightDevice{Weight: new(uint16(*r.Weight))}
		w.Major, w.Minor = d.major, d.minor
		to.WeightDevice = append(to.WeightDevice, w)
	}
	for _, l := range []struct {
		to *[]specs.LinuxThrottleDevice
		q  *quantity
	}{
		{&to.ThrottleReadBpsDevice, r.ThrottleReadBps}, {&to.ThrottleWriteBpsDevice, r.ThrottleWriteBps},
		{&to.ThrottleReadIOPSDevice, r.ThrottleReadIOPS}, {&to.ThrottleWriteIOPSDevice, r.ThrottleWriteIOPS},
	} {
		if l.q == nil {
			continue
		}
		t := specs.LinuxThrottleDevice{Rate: uint64(*l.q)}
		t.Major, t.Minor = d.major, d.minor
		*l.to = append(*l.to, t)
	}
}
