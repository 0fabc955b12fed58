// Package metrics reads the statistics that tasks report in containerd's two
// formats (io.containerd.cgroups.v1.Metrics and v2.Metrics), as far as people are
// shown them. It reads bytes only; unknown fields are skipped.
package metrics

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/berthd/berth/base/errs"
)

// Sample is one moment of one container.
type Sample struct {
	CPU       uint64 // ns of CPU time used so far
	Memory    uint64 // bytes in use, without what the kernel can drop at once
	Limit     uint64 // bytes; 0 or huge is no limit
	Pids      uint64
	ReadByte  uint64 // from disks, so far
	WriteByte uint64
}

// fields walks over the fields of a message.
func fields(b []byte, see func(num protowire.Number, v uint64, sub []byte)) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return protowire.ParseError(n)
			}
			see(num, v, nil)
			b = b[n:]
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return protowire.ParseError(n)
			}
			see(num, 0, v)
			b = b[n:]
		default:
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
		}
	}
	return nil
}

// numbers collects the numbers of a message by field; a broken one has none.
func numbers(b []byte) map[protowire.Number]uint64 {
	out := map[protowire.Number]uint64{}
	if fields(b, func(n protowire.Number, v uint64, _ []byte) { out[n] = v }) != nil {
		return nil
	}
	return out
}

// Parse reads the statistics of a type URL.
func Parse(url string, data []byte) (s Sample, err error) {
	name := url[strings.LastIndexByte(url, '/')+1:]
	switch name {
	case "io.containerd.cgroups.v1.Metrics":
		err = fields(data, s.v1)
	case "io.containerd.cgroups.v2.Metrics":
		err = fields(data, s.v2)
	default:
		err = errs.New(errs.Unimplemented, "statistics of type %q are not known", url)
	}
	return s, err
}

func (s *Sample) v1(n protowire.Number, _ uint64, sub []byte) {
	switch n {
	case 2: // pids: current, limit
		s.Pids = numbers(sub)[1]
	case 3: // cpu: usage{total}
		_ = fields(sub, func(n protowire.Number, _ uint64, usage []byte) {
			if n == 1 {
				s.CPU = numbers(usage)[1]
			}
		})
	case 4: // memory: …, total_inactive_file 30, usage 33{limit, usage}
		idle := numbers(sub)[30]
		_ = fields(sub, func(n protowire.Number, _ uint64, e []byte) {
			if n == 33 {
				v := numbers(e)
				s.Limit, s.Memory = v[1], less(v[2], idle)
			}
		})
	case 5: // blkio: io_service_bytes_recursive 1{op, device, major, minor, value}
		_ = fields(sub, func(n protowire.Number, _ uint64, e []byte) {
			if n != 1 {
				return
			}
			var op string
			var value uint64
			_ = fields(e, func(n protowire.Number, v uint64, text []byte) {
				switch n {
				case 1:
					op = strings.ToLower(string(text))
				case 5:
					value = v
				}
			})
			switch op {
			case "read":
				s.ReadByte += value
			case "write":
				s.WriteByte += value
			}
		})
	}
}

func (s *Sample) v2(n protowire.Number, _ uint64, sub []byte) {
	v := numbers(sub)
	switch n {
	case 1:
		s.Pids = v[1]
	case 2: // usage_usec
		s.CPU = v[1] * 1000
	case 4: // inactive_file 13, usage 32, usage_limit 33
		s.Memory, s.Limit = less(v[32], v[13]), v[33]
	case 6: // io: usage{major, minor, rbytes, wbytes}
		_ = fields(sub, func(n protowire.Number, _ uint64, e []byte) {
			if n == 1 {
				d := numbers(e)
				s.ReadByte, s.WriteByte = s.ReadByte+d[3], s.WriteByte+d[4]
			}
		})
	}
}

func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}
