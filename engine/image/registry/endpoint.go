package registry

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// capability says what a host may be asked for (hosts.toml `capabilities`).
type capability uint8

const (
	canPull capability = 1 << iota
	canResolve
	canPush
	canReferrers
	canAll = canPull | canResolve | canPush | canReferrers
)

var capabilityNames = []struct {
	name string
	bit  capability
}{{"pull", canPull}, {"resolve", canResolve}, {"push", canPush}, {"referrers", canReferrers}}

// names lists the capabilities in words.
func (c capability) names() []string {
	var out []string
	for _, n := range capabilityNames {
		if c&n.bit != 0 {
			out = append(out, n.name)
		}
	}
	return out
}

// endpoint is one place to ask, made once per Remote and not changed.
type endpoint struct {
	scheme string
	host   string // with port if the URL has one
	path   string // API root, usually "/v2"
	caps   capability
	header http.Header
	tls    *tlsSettings
	dial   time.Duration // 0: the client's default
	proxy  *url.URL      // nil: from the environment
	ns     string        // value of ?ns=, for a host that is not the registry itself
	// orHTTP marks an https endpoint that may be spoken to in plain http if it
	// turns out to speak nothing else: the port does not say, and either it is on
	// this machine or the operator wrote http:// together with TLS settings.
	orHTTP   bool
	upstream bool // the registry itself, or `server`: its verdict is the final one
}

// origin is what credentials are bound to: scheme, host and port.
func (e *endpoint) origin() string { return originOf(e.scheme, e.host) }

func originOf(scheme, host string) string {
	host = strings.ToLower(host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return scheme + "://" + host
}

func urlOrigin(u *url.URL) string { return originOf(u.Scheme, u.Host) }

// url builds the address of one object; the parts are checked names (repository,
// tag, digest) and fixed words.
func (e *endpoint) url(repo string, query url.Values, parts ...string) *url.URL {
	if e.ns != "" {
		if query == nil {
			query = url.Values{}
		}
		query.Set("ns", e.ns)
	}
	p := strings.TrimSuffix(e.path, "/") + "/" + repo + "/" + strings.Join(parts, "/")
	return &url.URL{Scheme: e.scheme, Host: e.host, Path: p, RawQuery: query.Encode()}
}

func (e *endpoint) blobURL(repo string, d digest.Digest) *url.URL {
	return e.url(repo, nil, "blobs", d.String())
}

func (e *endpoint) manifestURL(repo, object string) *url.URL {
	return e.url(repo, nil, "manifests", object)
}

// isLoopback says whether a URL host names this machine by itself, without DNS.
func isLoopback(host string) bool {
	name := hostname(host)
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.Unmap().IsLoopback()
}

// hostname takes the port and brackets off a URL host.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.Trim(host, "[]")
}

func portOf(host string) string {
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		return ""
	}
	return port
}

// upstreamEndpoint is the registry that a name's host means when hosts.toml does
// not say. base carries what hosts.toml says about it otherwise.
func upstreamEndpoint(host string, base endpoint, opts Options) *endpoint {
	e := base
	e.upstream, e.host, e.scheme, e.path, e.ns = true, host, "https", "/v2", ""
	switch {
	case host == "docker.io":
		e.host = "registry-1.docker.io"
	case opts.DefaultScheme != "":
		e.scheme = opts.DefaultScheme
	case isLoopback(host):
		// As the peer does: a port that does not tell is tried with TLS first,
		// unverified (it is this machine), and in plain text if it speaks no TLS.
		switch portOf(host) {
		case "80":
			e.scheme = "http"
		case "", "443":
			e.tls = e.tls.orSkipVerify()
		default:
			e.tls = e.tls.orSkipVerify()
			e.orHTTP = true
		}
	}
	return &e
}

// endpoints lists the hosts of a registry in the order in which they are asked.
func (h *hostsConfig) endpoints(host string, opts Options) []*endpoint {
	var out []*endpoint
	for _, e := range h.hosts {
		out = append(out, e.forCall(host, opts))
	}
	if h.noFallback {
		return out
	}
	if h.server != nil {
		s := h.server.forCall(host, opts)
		s.upstream = true
		return append(out, s)
	}
	up := upstreamEndpoint(host, h.root, opts)
	return append(out, up.forCall(host, opts))
}

// forCall copies e with what one call and one registry host add.
func (e *endpoint) forCall(host string, opts Options) *endpoint {
	c := *e
	if c.host != host && !(host == "docker.io" && c.host == "registry-1.docker.io") {
		c.ns = host
	}
	if opts.SkipVerify {
		c.tls = c.tls.orSkipVerify()
	}
	return &c
}
