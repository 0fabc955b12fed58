package cni

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/berthd/berth/host/netns"
)

// BenchmarkPod measures an ADD and a DEL of the usual list. The sums are reported
// apart, in milliseconds.
func BenchmarkPod(b *testing.B) {
	for _, c := range []struct {
		name    string
		builtin bool
		ports   []PortMapping
	}{{"programs", false, nil}, {"builtin", true, nil}, {"programs/ports", false, ports}, {"builtin/ports", true, ports}} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, Config{Builtin: c.builtin})
			w.write("10-one.conflist", bridgeV4)
			var add, del []time.Duration
			b.ResetTimer()
			for i := range b.N {
				s := w.plan(Request{ContainerID: fmt.Sprint("pod", i), NetNS: w.pod(), Ports: c.ports})
				start := time.Now()
				r, err := w.add(s)
				if err != nil {
					b.Fatal(err)
				}
				add = append(add, time.Since(start))
				start = time.Now()
				w.within(func() { err = w.nets.End(context.Background(), r.Saved) })
				if err := errors.Join(err, netns.Remove(context.Background(), filepath.Dir(s.NetNS))); err != nil {
					b.Fatal(err)
				}
				del = append(del, time.Since(start))
			}
			for what, all := range map[string][]time.Duration{"add": add, "del": del} {
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "ms/"+what+"-p50")
				b.ReportMetric(float64(all[len(all)*9/10].Microseconds())/1000, "ms/"+what+"-p90")
			}
		})
	}
}

var ports = []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}

const bridgeV4 = `{"cniVersion":"1.0.0","name":"one","plugins":[
 {"type":"bridge","bridge":"nebr0","isGateway":true,"ipMasq":true,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.103.1.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}`
