package builtin

import (
	"net/netip"
	"testing"
)

// FuzzConfiguration: whatever a configuration says, it is taken or refused, and what
// is taken has ranges that can be gone through.
func FuzzConfiguration(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.0.0","name":"n","type":"bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/29","rangeStart":"10.0.0.2","gateway":"10.0.0.6"}],[{"subnet":"fd00::/125"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`,
		`{"name":"n","ipam":{"type":"host-local","subnet":"255.255.255.252/30"}}`,
		`{"name":"n","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":2,"protocol":"tcp","hostIP":"::1"}],"ips":["10.0.0.3/8"]},"prevResult":{"ips":[{"address":"10.0.0.2/8"}]}}`,
		`{"name":"n","runtimeConfig":{"bandwidth":{"ingressRate":1}}}`, `[]`, `null`, `{"ipam":{"ranges":[[]]}}`,
	} {
		f.Add([]byte(s))
	}
	p := New()
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, typ := range []string{"bridge", "ptp", "host-local", "loopback", "bandwidth", "portmap", "other"} {
			p.Can(Call{Verb: "ADD", Type: typ, Conf: data})
		}
		conf, err := readIPAM(Call{Conf: data})
		if err != nil {
			return
		}
		for _, set := range conf.IPAM.Ranges {
			n := 0
			err := each(set, set[0].Start, func(a netip.Addr) (bool, error) {
				r := find(set, a)
				if r == nil || a == r.Gateway {
					t.Fatalf("%s is given out of %s", a, describe(set))
				}
				n++
				return n > 300, nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		_, _ = conf.asked()
		_, _ = conf.previous()
	})
}

// FuzzAttributes: what the kernel says is read within its bounds.
func FuzzAttributes(f *testing.F) {
	f.Add(rule{}.protocol(6).comment("x").jump("CHAIN").exprs)
	f.Add([]byte{4, 0, 1, 0, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		for _, e := range elements(data) {
			total += len(e)
			attrs(attrs(e)[2])
		}
		if total > len(data) {
			t.Fatalf("%d bytes out of %d", total, len(data))
		}
	})
}
