package builtin

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// family is IPv4 or IPv6 in table nat.
type family struct {
	proto     uint8 // NFPROTO_*
	source    int   // offsets of the addresses in the header
	dest      int
	multicast netip.Prefix
	loopback  netip.Addr // invalid: traffic of the host to itself is not looked for
}

var (
	ipv4 = family{unix.NFPROTO_IPV4, 12, 16, netip.MustParsePrefix("224.0.0.0/4"), netip.MustParseAddr("127.0.0.1")}
	ipv6 = family{unix.NFPROTO_IPV6, 8, 24, netip.MustParsePrefix("ff00::/8"), netip.Addr{}}
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// rule is a rule of iptables in the form that iptables-nft gives it, so that iptables
// shows and deletes it like one of its own: addresses, ports and protocol by
// nf_tables' own expressions, other matches and targets by those of xtables.
type rule struct {
	exprs []byte
	proto uint8 // of "-p"; 0: any
}

func (r rule) with(name string, parts ...[]byte) rule {
	e := nest(unix.NFTA_LIST_ELEM, text(unix.NFTA_EXPR_NAME, name), nest(unix.NFTA_EXPR_DATA, parts...))
	r.exprs = append(append([]byte(nil), r.exprs...), e...)
	return r
}

func (r rule) cmp(op uint32, value []byte) rule {
	return r.with("cmp", be32(unix.NFTA_CMP_SREG, unix.NFT_REG_1), be32(unix.NFTA_CMP_OP, op), nest(unix.NFTA_CMP_DATA, attr(unix.NFTA_DATA_VALUE, value)))
}

func (r rule) load(base, offset, size int) rule {
	return r.with("payload", be32(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1), be32(unix.NFTA_PAYLOAD_BASE, uint32(base)),
		be32(unix.NFTA_PAYLOAD_OFFSET, uint32(offset)), be32(unix.NFTA_PAYLOAD_LEN, uint32(size)))
}

func (r rule) mask(m []byte) rule {
	return r.with("bitwise", be32(unix.NFTA_BITWISE_SREG, unix.NFT_REG_1), be32(unix.NFTA_BITWISE_DREG, unix.NFT_REG_1), be32(unix.NFTA_BITWISE_LEN, uint32(len(m))),
		nest(unix.NFTA_BITWISE_MASK, attr(unix.NFTA_DATA_VALUE, m)), nest(unix.NFTA_BITWISE_XOR, attr(unix.NFTA_DATA_VALUE, make([]byte, len(m)))))
}

// protocol is -p.
func (r rule) protocol(p uint8) rule {
	r = r.with("meta", be32(unix.NFTA_META_DREG, unix.NFT_REG_1), be32(unix.NFTA_META_KEY, unix.NFT_META_L4PROTO)).cmp(unix.NFT_CMP_EQ, []byte{p})
	r.proto = p
	return r
}

// address is -s or -d, by the offset, as iptables has it since 1.8.6: of a prefix of
// whole bytes only those are loaded.
func (r rule) address(offset int, p netip.Prefix, not bool) rule {
	if p.Bits() == 0 {
		return r
	}
	op := uint32(unix.NFT_CMP_EQ)
	if not {
		op = unix.NFT_CMP_NEQ
	}
	value := p.Masked().Addr().AsSlice()
	if p.Bits()%8 == 0 {
		return r.load(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, p.Bits()/8).cmp(op, value[:p.Bits()/8])
	}
	m := make([]byte, len(value))
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return r.load(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, len(value)).mask(m).cmp(op, value)
}

// port is --dport of TCP and UDP.
func (r rule) port(p uint16) rule {
	return r.load(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2).cmp(unix.NFT_CMP_EQ, binary.BigEndian.AppendUint16(nil, p))
}

// mark is -m mark --mark v/v.
func (r rule) mark(v uint32) rule {
	b := binary.NativeEndian.AppendUint32(nil, v)
	return r.with("meta", be32(unix.NFTA_META_DREG, unix.NFT_REG_1), be32(unix.NFTA_META_KEY, unix.NFT_META_MARK)).mask(b).cmp(unix.NFT_CMP_EQ, b)
}

// match is a match of xtables with its data (struct of linux/netfilter/xt_NAME.h).
func (r rule) match(name string, revision uint32, info []byte) rule {
	return r.with("match", text(unix.NFTA_MATCH_NAME, name), be32(unix.NFTA_MATCH_REV, revision), attr(unix.NFTA_MATCH_INFO, info))
}

func (r rule) comment(s string) rule {
	b := make([]byte, 256) // struct xt_comment_info
	copy(b[:255], s)
	return r.match("comment", 0, b)
}

func (r rule) counter() rule {
	zero := make([]byte, 8)
	return r.with("counter", attr(unix.NFTA_COUNTER_BYTES, zero), attr(unix.NFTA_COUNTER_PACKETS, zero))
}

// target is a target of xtables; the rule ends there.
func (r rule) target(name string, revision uint32, info []byte) rule {
	return r.counter().with("target", text(unix.NFTA_TARGET_NAME, name), be32(unix.NFTA_TARGET_REV, revision), attr(unix.NFTA_TARGET_INFO, info))
}

func (r rule) verdict(code int32, chain string) rule {
	v := be32(unix.NFTA_VERDICT_CODE, uint32(code))
	if chain != "" {
		v = append(v, text(unix.NFTA_VERDICT_CHAIN, chain)...)
	}
	return r.counter().with("immediate", be32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT), nest(unix.NFTA_IMMEDIATE_DATA, nest(unix.NFTA_DATA_VERDICT, v)))
}

func (r rule) jump(chain string) rule { return r.verdict(unix.NFT_JUMP, chain) }

const table = "nat"

// hooks are the chains of table nat that the kernel itself calls, as iptables makes
// them: number of the hook, priority.
var hooks = map[string][2]int32{"PREROUTING": {unix.NF_INET_PRE_ROUTING, -100}, "OUTPUT": {unix.NF_INET_LOCAL_OUT, -100}, "POSTROUTING": {unix.NF_INET_POST_ROUTING, 100}}

func (f family) newTable() message {
	return message{"make table nat", unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE | unix.NLM_F_EXCL, f.proto, append(text(unix.NFTA_TABLE_NAME, table), be32(unix.NFTA_TABLE_FLAGS, 0)...)}
}

// newChain makes a chain, which must not be there: making sure that it is would be a
// change to the kernel, and make the next transaction wait until the change is history.
func (f family) newChain(name string) message {
	b := append(text(unix.NFTA_CHAIN_TABLE, table), text(unix.NFTA_CHAIN_NAME, name)...)
	if h, ok := hooks[name]; ok {
		b = append(b, nest(unix.NFTA_CHAIN_HOOK, be32(unix.NFTA_HOOK_HOOKNUM, uint32(h[0])), be32(unix.NFTA_HOOK_PRIORITY, uint32(h[1])))...)
		b = append(b, text(unix.NFTA_CHAIN_TYPE, "nat")...)
	}
	return message{"make chain " + name, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE | unix.NLM_F_EXCL, f.proto, b}
}

func (f family) chainBody(chain string) []byte {
	return append(text(unix.NFTA_RULE_TABLE, table), text(unix.NFTA_RULE_CHAIN, chain)...)
}

// add appends a rule to a chain, or puts it first.
func (f family) add(chain string, first bool, r rule) message {
	b := append(f.chainBody(chain), nest(unix.NFTA_RULE_EXPRESSIONS, r.exprs)...)
	if r.proto != 0 {
		b = append(b, nest(unix.NFTA_RULE_COMPAT, be32(unix.NFTA_RULE_COMPAT_PROTO, uint32(r.proto)), be32(unix.NFTA_RULE_COMPAT_FLAGS, 0))...)
	}
	flags := unix.NLM_F_CREATE | unix.NLM_F_APPEND
	if first {
		flags = unix.NLM_F_CREATE
	}
	return message{"add a rule to chain " + chain, unix.NFT_MSG_NEWRULE, flags, f.proto, b}
}

// delete deletes one rule of a chain, or with handle nil all.
func (f family) delete(chain string, handle []byte) message {
	b := f.chainBody(chain)
	if handle != nil {
		b = append(b, attr(unix.NFTA_RULE_HANDLE, handle)...)
	}
	return message{"delete rules of chain " + chain, unix.NFT_MSG_DELRULE, 0, f.proto, b}
}

func (f family) deleteChain(chain string) message {
	return message{"delete chain " + chain, unix.NFT_MSG_DELCHAIN, 0, f.proto, append(text(unix.NFTA_CHAIN_TABLE, table), text(unix.NFTA_CHAIN_NAME, chain)...)}
}

// seen is a rule as the kernel tells it.
type seen struct {
	handle []byte
	exprs  []byte
	jump   string // the chain that it leads to
}

// rules lists a chain's rules; none if there is no such chain.
func (n *nft) rules(f family, chain string) ([]seen, error) {
	all, err := n.get(message{typ: unix.NFT_MSG_GETRULE, family: f.proto, body: f.chainBody(chain)}, true)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules of chain %s: %w", chain, err)
	}
	var out []seen
	for _, b := range all {
		a := attrs(b)
		s := seen{handle: a[unix.NFTA_RULE_HANDLE], exprs: a[unix.NFTA_RULE_EXPRESSIONS]}
		for _, e := range elements(s.exprs) {
			data := attrs(attrs(e)[unix.NFTA_EXPR_DATA])
			if v := attrs(attrs(data[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT])[unix.NFTA_VERDICT_CHAIN]; v != nil && bytes.HasPrefix(attrs(e)[unix.NFTA_EXPR_NAME], []byte("immediate")) {
				s.jump = string(bytes.TrimRight(v, "\x00"))
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// has reports whether there is a chain.
func (n *nft) has(f family, chain string) (bool, error) {
	b := append(text(unix.NFTA_CHAIN_TABLE, table), text(unix.NFTA_CHAIN_NAME, chain)...)
	_, err := n.get(message{typ: unix.NFT_MSG_GETCHAIN, family: f.proto, body: b}, false)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up chain %s: %w", chain, err)
	}
	return true, nil
}

func absent(err error) bool { return errors.Is(err, unix.ENOENT) }

// missing are the messages that make table nat and those of the chains which are not
// there.
func (n *nft) missing(f family, chains ...string) ([]message, error) {
	var all []message
	for _, c := range chains {
		ok, err := n.has(f, c)
		if err != nil {
			return nil, err
		}
		if !ok {
			all = append(all, f.newChain(c))
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	_, err := n.get(message{typ: unix.NFT_MSG_GETTABLE, family: f.proto, body: text(unix.NFTA_TABLE_NAME, table)}, false)
	if absent(err) {
		return append([]message{f.newTable()}, all...), nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up table nat: %w", err)
	}
	return all, nil
}

// settle makes messages and commits them, anew when somebody else made or deleted
// meanwhile what they are about.
func (n *nft) settle(prepare func() ([]message, error)) error {
	var err error
	for range 5 {
		var all []message
		if all, err = prepare(); err == nil {
			err = n.commit(all)
		}
		if !absent(err) && !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	return err
}

// dropChain deletes a chain, what is in it, and the rules of the entry chains that
// lead to it. What is not there is no error.
func (n *nft) dropChain(f family, chain string, entries ...string) error {
	return n.settle(func() ([]message, error) { return n.dropping(f, chain, entries...) })
}

func (n *nft) dropping(f family, chain string, entries ...string) ([]message, error) {
	if ok, err := n.has(f, chain); err != nil || !ok {
		return nil, err
	}
	var all []message
	for _, e := range entries {
		list, err := n.rules(f, e)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			if r.jump == chain {
				all = append(all, f.delete(e, r.handle))
			}
		}
	}
	return append(all, f.delete(chain, nil), f.deleteChain(chain)), nil
}
