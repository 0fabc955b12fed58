package builtin

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
)

// shape says which keys an object may have, and what their values are: nil is any
// value that is not looked into.
type shape map[string]any

// list is an array of one shape.
type list struct{ of any }

var (
	headKeys = shape{
		"cniVersion": nil, "name": nil, "type": nil, "capabilities": nil, "dns": nil, "prevResult": nil,
		"cni.dev/valid-attachments": nil, "cni.dev/attachments": nil,
	}
	rangeKeys = shape{"subnet": nil, "rangeStart": nil, "rangeEnd": nil, "gateway": nil}
	routeKeys = shape{"dst": nil, "gw": nil, "mtu": nil, "advmss": nil, "priority": nil, "table": nil, "scope": nil}
	ipamKeys  = with(rangeKeys, shape{"type": nil, "dataDir": nil, "ranges": list{list{rangeKeys}}, "routes": list{routeKeys}})

	ipamOnlyKeys = with(headKeys, shape{"ipam": ipamKeys, "runtimeConfig": shape{"ips": nil, "portMappings": nil, "bandwidth": nil, "dns": nil, "mac": nil}})
	loopbackKeys = with(headKeys, shape{"runtimeConfig": shape{}})
	bridgeKeys   = with(headKeys, shape{
		"bridge": nil, "isGateway": nil, "isDefaultGateway": nil, "forceAddress": nil, "ipMasq": nil, "ipMasqBackend": nil, "mtu": nil,
		"hairpinMode": nil, "promiscMode": nil, "enabledad": nil, "ipam": ipamKeys, "runtimeConfig": shape{"ips": nil, "mac": nil},
	})
	ptpKeys       = with(headKeys, shape{"ipMasq": nil, "ipMasqBackend": nil, "mtu": nil, "ipam": ipamKeys, "runtimeConfig": shape{"ips": nil}})
	bandwidthKeys = with(headKeys, shape{"runtimeConfig": shape{"bandwidth": nil}})
	portmapKeys   = with(headKeys, shape{"backend": nil, "snat": nil, "masqAll": nil, "markMasqBit": nil, "runtimeConfig": shape{"portMappings": list{shape{
		"hostPort": nil, "containerPort": nil, "protocol": nil, "hostIP": nil,
	}}}})
)

func with(a, b shape) shape {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// known reports whether a document has only keys of the shape, written as there:
// Go's decoder would take another case for the same, and the program too, but there
// is no need to guess what was meant.
func known(doc []byte, s any) bool {
	switch s := s.(type) {
	case nil:
		return true
	case list:
		var all []json.RawMessage
		if json.Unmarshal(doc, &all) != nil {
			return false
		}
		return !slices.ContainsFunc(all, func(d json.RawMessage) bool { return !known(d, s.of) })
	case shape:
		var m map[string]json.RawMessage
		if json.Unmarshal(doc, &m) != nil {
			return bytes.Equal(doc, []byte("null"))
		}
		for k, v := range m {
			if sub, ok := s[k]; !ok || !known(v, sub) {
				return false
			}
		}
		return true
	}
	return false
}
