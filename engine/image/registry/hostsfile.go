package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/berthd/berth/base/errs"
)

// maxHostsFile is the largest hosts.toml that is read, in bytes.
const maxHostsFile = 1 << 20

// hostsConfig is what the operator wrote down for one registry host.
type hostsConfig struct {
	path       string      // file or directory it came from; "" if there is none
	hosts      []*endpoint // the [host] tables in file order
	server     *endpoint   // `server`, asked last; nil: the registry itself
	root       endpoint    // settings outside of tables, for the registry itself
	noFallback bool        // `fallback = false`: only the [host] tables are asked
	warnings   []string    // unknown keys and the like, for a person
	inputs     []string    // files that it depends on
}

// hostTable is one [host."URL"] table, or the keys outside of tables.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	Proxy        string         `toml:"proxy"`
}

type hostsFile struct {
	hostTable
	Server   string               `toml:"server"`
	Fallback *bool                `toml:"fallback"` // ours: false forbids the registry itself
	Host     map[string]hostTable `toml:"host"`
}

// parseHosts reads a hosts.toml; dir is where relative paths start.
func parseHosts(dir string, data []byte) (*hostsConfig, error) {
	if len(data) > maxHostsFile {
		return nil, errs.New(errs.FailedPrecondition, "%d bytes, at most %d are read", len(data), maxHostsFile)
	}
	var f hostsFile
	h := &hostsConfig{}
	if err := decodeHosts(data, &f, h); err != nil {
		return nil, err
	}
	order, err := hostOrder(data)
	if err != nil {
		return nil, err
	}
	for _, name := range order {
		t, ok := f.Host[name]
		if !ok {
			continue
		}
		if name == "" {
			return nil, errs.New(errs.FailedPrecondition, "a [host] table without a URL")
		}
		e, err := h.endpoint(dir, name, t)
		if err != nil {
			return nil, errs.New(errs.FailedPrecondition, "host %q: %w", redactText(name), err)
		}
		h.hosts = append(h.hosts, e)
	}
	h.noFallback = f.Fallback != nil && !*f.Fallback
	if f.Server != "" {
		if h.server, err = h.endpoint(dir, f.Server, f.hostTable); err != nil {
			return nil, errs.New(errs.FailedPrecondition, "server %q: %w", redactText(f.Server), err)
		}
		if h.noFallback {
			h.warnings = append(h.warnings, "server is never asked: fallback = false")
		}
		return h, nil
	}
	root, err := h.endpoint(dir, "", f.hostTable)
	if err != nil {
		return nil, err
	}
	h.root = *root
	return h, nil
}

// decodeHosts fills f and notes unknown keys as warnings: a newer peer may know them.
func decodeHosts(data []byte, f *hostsFile, h *hostsConfig) error {
	err := toml.NewDecoder(strings.NewReader(string(data))).DisallowUnknownFields().Decode(f)
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		for _, e := range strict.Errors {
			row, _ := e.Position()
			h.warnings = append(h.warnings, fmt.Sprintf("line %d: unknown key %s is ignored", row, redactText(strings.Join(e.Key(), "."))))
		}
		*f = hostsFile{}
		err = toml.Unmarshal(data, f)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, col := bad.Position()
		return errs.New(errs.FailedPrecondition, "line %d, column %d: %w", row, col, err)
	}
	if err != nil {
		return errs.New(errs.FailedPrecondition, "%w", err)
	}
	return nil
}

// hostOrder lists the keys below `host` in the order in which they first appear:
// a decoded TOML table has lost it.
func hostOrder(data []byte) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	add := func(name string) {
		if !seen[name] {
			seen[name] = true
			order = append(order, name)
		}
	}
	var p unstable.Parser
	p.Reset(data)
	var table []string
	for p.NextExpression() {
		n := p.Expression()
		keys := keyParts(n)
		switch n.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = keys
			if len(keys) > 1 && keys[0] == "host" {
				add(keys[1])
			}
		case unstable.KeyValue:
			full := append(append([]string{}, table...), keys...)
			if len(full) == 0 || full[0] != "host" {
				continue
			}
			if len(full) > 1 {
				add(full[1])
			} else if v := n.Value(); v.Kind == unstable.InlineTable { // host = { "URL" = {…} }
				for it := v.Children(); it.Next(); {
					if k := keyParts(it.Node()); len(k) > 0 {
						add(k[0])
					}
				}
			}
		}
	}
	if err := p.Error(); err != nil {
		return nil, errs.New(errs.FailedPrecondition, "%w", err)
	}
	return order, nil
}

func keyParts(n *unstable.Node) []string {
	var out []string
	for it := n.Key(); it.Next(); {
		out = append(out, string(it.Node().Data))
	}
	return out
}

// endpoint turns a table into an endpoint; an empty rawURL leaves the place open.
func (h *hostsConfig) endpoint(dir, rawURL string, t hostTable) (*endpoint, error) {
	e := &endpoint{caps: canAll}
	var err error
	if rawURL != "" {
		if err := e.place(rawURL, t.OverridePath); err != nil {
			return nil, err
		}
	}
	if len(t.Capabilities) > 0 {
		if e.caps, err = parseCapabilities(t.Capabilities); err != nil {
			return nil, err
		}
	}
	cas, err := pathList(dir, t.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	pairs, err := pathPairs(dir, t.Client)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	h.inputs = append(h.inputs, cas...)
	for _, p := range pairs {
		h.inputs = append(h.inputs, p[0], p[1])
	}
	if e.tls, err = loadTLS(cas, pairs, t.SkipVerify); err != nil {
		return nil, err
	}
	// As the peer: http:// together with TLS settings means "whichever it speaks".
	if e.scheme == "http" && e.tls != nil && portOf(e.host) != "80" {
		e.scheme, e.orHTTP = "https", true
	}
	if e.header, err = parseHeader(t.Header); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if t.DialTimeout != "" {
		if e.dial, err = time.ParseDuration(t.DialTimeout); err != nil || e.dial <= 0 {
			return nil, fmt.Errorf("dial_timeout %q: want a duration above 0, as in \"5s\"", t.DialTimeout)
		}
	}
	if t.Proxy != "" {
		if e.proxy, err = parseProxy(t.Proxy); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// place sets scheme, host and API root from a URL, or from a bare host (https).
func (e *endpoint) place(raw string, override bool) error {
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" {
		return fmt.Errorf("%q is not a URL", redactText(raw))
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("scheme %q: want http or https", u.Scheme)
	}
	if u.Hostname() == "" || strings.Contains(u.Host, "%") {
		return errors.New("the URL names no host")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("a URL here has no user, query or fragment; credentials belong into a config.json")
	}
	e.scheme, e.host = u.Scheme, u.Host
	e.path = path.Clean("/" + u.Path)
	if !override && !strings.HasSuffix(e.path, "/v2") {
		e.path = path.Join(e.path, "v2")
	}
	return nil
}

func parseCapabilities(names []string) (capability, error) {
	var c capability
next:
	for _, n := range names {
		for _, k := range capabilityNames {
			if strings.EqualFold(n, k.name) {
				c |= k.bit
				continue next
			}
		}
		return 0, fmt.Errorf("capability %q: want pull, resolve, push or referrers", n)
	}
	return c, nil
}

// pathList reads `ca`: one path or a list of paths.
func pathList(dir string, v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{within(dir, v)}, nil
	case []any:
		var out []string
		for _, p := range v {
			s, ok := p.(string)
			if !ok {
				return nil, fmt.Errorf("%v is not a path", p)
			}
			out = append(out, within(dir, s))
		}
		return out, nil
	}
	return nil, fmt.Errorf("%v is neither a path nor a list of paths", v)
}

// pathPairs reads `client`: a path, a list of paths, or a list of [cert, key].
func pathPairs(dir string, v any) ([][2]string, error) {
	list, isList := v.([]any)
	if !isList {
		if v == nil {
			return nil, nil
		}
		list = []any{v}
	}
	var out [][2]string
	for _, item := range list {
		paths, err := pathList(dir, item)
		if err != nil {
			return nil, err
		}
		_, isPair := item.([]any)
		switch {
		case isPair && len(paths) != 2:
			return nil, fmt.Errorf("%v: want [certificate, key]", item)
		case isPair:
			out = append(out, [2]string{paths[0], paths[1]})
		default:
			out = append(out, [2]string{paths[0], ""})
		}
	}
	return out, nil
}

func within(dir, p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(dir, p)
}

func parseHeader(in map[string]any) (http.Header, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := http.Header{}
	for k, v := range in {
		if !validHeaderName(k) {
			return nil, fmt.Errorf("%q is not a header name", k)
		}
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, item := range list {
			s, ok := item.(string)
			if !ok || !validHeaderValue(s) {
				return nil, fmt.Errorf("the value of %s is not a header value", k) // may be a secret: not shown
			}
			out.Add(k, s)
		}
	}
	return out, nil
}

func parseProxy(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("proxy: want scheme://host:port")
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		return u, nil
	}
	return nil, fmt.Errorf("proxy scheme %q: want http, https, socks5 or socks5h", u.Scheme)
}

// certPairs sorts docker-style files in a directory: *.crt are authorities, each
// *.cert is a client certificate whose key is beside it as *.key.
func certPairs(dir string, names []string) (cas []string, pairs [][2]string) {
	sort.Strings(names)
	for _, n := range names {
		switch filepath.Ext(n) {
		case ".crt":
			cas = append(cas, filepath.Join(dir, n))
		case ".cert":
			key := strings.TrimSuffix(n, ".cert") + ".key"
			pairs = append(pairs, [2]string{filepath.Join(dir, n), filepath.Join(dir, key)})
		}
	}
	return cas, pairs
}
