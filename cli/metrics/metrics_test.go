package metrics

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func num(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func sub(b []byte, n protowire.Number, in []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), in)
}

func TestParse(t *testing.T) {
	want := Sample{CPU: 5_000_000, Memory: 900, Limit: 4096, Pids: 3, ReadByte: 70, WriteByte: 11}
	entry := func(op string, v uint64) []byte { return num(sub(nil, 1, []byte(op)), 5, v) }
	v1 := sub(nil, 2, num(nil, 1, 3))
	v1 = sub(v1, 3, sub(nil, 1, num(nil, 1, 5_000_000)))
	v1 = sub(v1, 4, sub(num(nil, 30, 100), 33, num(num(nil, 1, 4096), 2, 1000)))
	v1 = sub(v1, 5, sub(sub(sub(nil, 1, entry("Read", 70)), 1, entry("Write", 11)), 1, entry("Total", 81)))
	v2 := sub(nil, 1, num(nil, 1, 3))
	v2 = sub(v2, 2, num(nil, 1, 5000))
	v2 = sub(v2, 4, num(num(num(nil, 13, 100), 32, 1000), 33, 4096))
	v2 = sub(v2, 6, sub(sub(nil, 1, num(num(nil, 3, 30), 4, 1)), 1, num(num(nil, 3, 40), 4, 10)))
	for url, data := range map[string][]byte{"io.containerd.cgroups.v1.Metrics": v1, "type.googleapis.com/io.containerd.cgroups.v2.Metrics": v2} {
		if got, err := Parse(url, data); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", url, got, err, want)
		}
	}
	if _, err := Parse("x", nil); err == nil {
		t.Error("an unknown type is no error")
	}
	if _, err := Parse("io.containerd.cgroups.v2.Metrics", []byte{0xff}); err == nil {
		t.Error("broken bytes are no error")
	}
}
