// Package registry is the client side of the OCI distribution protocol: it turns
// image names into descriptors and fetches and sends what they name, over the
// hosts that hosts.toml files allow, with the credentials that belong to each.
//
// It owns connection pools, tokens, the health of hosts and the parsed hosts.toml
// files, all inside one Client. It treats every answer as hostile: sizes, digests,
// times, redirects and token realms are bounded and checked (docs/design/registry.md).
// It never writes to disk, knows nothing of stores, and puts no secret into an
// error or a log line.
package registry

import (
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/base/keylock"
	"github.com/berthd/berth/engine/image/registry/authfile"
)

// DefaultHostsDirs is where hosts.toml files are looked for, first hit wins.
const DefaultHostsDirs = "/etc/containerd/certs.d:/etc/docker/certs.d"

// Config is what a Client needs; the zero value of each field means its default.
type Config struct {
	// HostsDirs is a colon separated list of directories that hold one directory
	// per registry host. Empty means none are read.
	HostsDirs string
	// UserAgent of every request; default "berth".
	UserAgent string
	// Header is sent with every request to a registry or its mirrors; what hosts.toml
	// or a call says of the same name wins.
	Header http.Header
	// CredentialFiles are docker config.json or containers auth.json files, asked
	// in order when a call brings no credential of its own for a host.
	CredentialFiles []string
	// DialTimeout bounds one TCP connect where hosts.toml does not; default 30 s.
	DialTimeout time.Duration
	// IdleTimeout closes connections that nobody used; default 90 s.
	IdleTimeout time.Duration
	// Logger gets what a successful call would otherwise hide: failed mirrors,
	// odd configuration, registry warnings. Default: nowhere.
	Logger *slog.Logger
	// Limits are the budgets that hostile or broken hosts run into.
	Limits Limits
}

// Limits are budgets; the zero value of each field means the default.
type Limits struct {
	Manifest     int64         // bytes of a manifest, index, config or page of a list; 4 MiB
	Token        int64         // bytes of a token server's answer; 1 MiB
	Header       int64         // bytes of an answer's header; 1 MiB
	Attempts     int           // requests per call, over all hosts, unless there are more hosts; 5
	Redirects    int           // hops of one request; 10
	HeaderWait   time.Duration // for an answer's complete header; 30 s
	UploadWait   time.Duration // the same after an upload was sent; 15 min
	QuickConnect time.Duration // to connect, before another host is tried first; 1 s
	Backoff      time.Duration // before the first repetition, doubled each time; 200 ms
	RetryAfter   time.Duration // longest wait that a host may ask for; 30 s
	Stall        time.Duration // without one byte of a body; 30 s
	RateWindow   time.Duration // over which the rate of a body is taken; 30 s
	SlowRate     int64         // bytes/s below which another connection or host is tried; 8 KiB/s
	DeadRate     int64         // bytes/s below which bytes do not count as progress; 256 B/s
}

func orElse[T int | int64 | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

func (l *Limits) fill() {
	orElse(&l.Manifest, 4<<20)
	orElse(&l.Token, 1<<20)
	orElse(&l.Header, 1<<20)
	orElse(&l.Attempts, 5)
	orElse(&l.Redirects, 10)
	orElse(&l.HeaderWait, 30*time.Second)
	orElse(&l.UploadWait, 15*time.Minute)
	orElse(&l.QuickConnect, time.Second)
	orElse(&l.Backoff, 200*time.Millisecond)
	orElse(&l.RetryAfter, 30*time.Second)
	orElse(&l.Stall, 30*time.Second)
	orElse(&l.RateWindow, 30*time.Second)
	orElse(&l.SlowRate, 8<<10)
	orElse(&l.DeadRate, 256)
}

// Client talks to registries. One serves the whole daemon: what it learns about
// hosts and the tokens it holds are shared by all calls. It is safe for
// concurrent use.
type Client struct {
	cfg    Config
	limits Limits
	log    *slog.Logger
	pool   *pool
	health *health
	auth   *authorizer

	mu     sync.Mutex
	stored *authfile.Files
	hosts  map[string]*hostsDirs // by colon list: the daemon's own and those of calls
}

// New makes a client. It opens nothing and starts nothing.
func New(cfg Config) *Client {
	cfg.Limits.fill()
	orElse(&cfg.DialTimeout, 30*time.Second)
	orElse(&cfg.IdleTimeout, 90*time.Second)
	if cfg.UserAgent == "" {
		cfg.UserAgent = "berth"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{
		cfg:    cfg,
		limits: cfg.Limits,
		log:    cfg.Logger,
		pool:   newPool(cfg),
		health: newHealth(),
		auth:   newAuthorizer(),
		stored: authfile.New(cfg.CredentialFiles, cfg.Logger),
		hosts:  map[string]*hostsDirs{},
	}
}

// Reload replaces the places of hosts.toml files and credentials, and the header of
// all requests; calls in progress keep the old ones.
func (c *Client) Reload(hostsDirs string, credentialFiles []string, header http.Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cfg.HostsDirs, c.cfg.Header, c.stored = hostsDirs, header, authfile.New(credentialFiles, c.log)
}

func (c *Client) header() http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Header
}

func (c *Client) credentials() *authfile.Files {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stored
}

// Close ends idle connections. Calls in progress go on.
func (c *Client) Close() { c.pool.closeIdle() }

// Options are what one call may set for itself.
type Options struct {
	// Credentials is asked once per host, when that host wants a credential. A
	// zero answer means "none of mine": the client's stored ones come next.
	Credentials CredentialFunc
	// Header is sent to the registry and its mirrors, not to redirect targets.
	Header http.Header
	// HostsDirs replaces the client's for this call when not empty.
	HostsDirs string
	// DefaultScheme, "http" or "https", is used where hosts.toml says nothing.
	DefaultScheme string
	// SkipVerify leaves TLS certificates unchecked where hosts.toml says nothing.
	SkipVerify bool
	// Debug gets requests and answers in text, credentials left out.
	Debug io.Writer
	// Trace adds the events below HTTP (names, connects, TLS) to Debug.
	Trace bool
}

// Remote is one repository on the hosts that serve it, in the order in which
// they are asked. It is safe for concurrent use and holds no connection.
type Remote struct {
	c         *Client
	ref       imageref.Reference
	endpoints []*endpoint
	file      string // hosts.toml or directory that matched; may be ""
	opts      Options
	header    http.Header // the client's
	debug     *debugLog

	asking keylock.Map // by endpoint host: one question at a time
	mu     sync.Mutex
	creds  map[string]Credential // by endpoint host
}

// Open finds the hosts of ref's repository without asking any of them. A
// hosts.toml that cannot be read is an error of kind FailedPrecondition: asking
// other hosts than the operator wrote down is worse than failing.
func (c *Client) Open(ref imageref.Reference, opts Options) (*Remote, error) {
	if ref.Host == "" || ref.Path == "" {
		return nil, errs.New(errs.InvalidArgument, "image name %q has no host or no path", ref)
	}
	switch opts.DefaultScheme {
	case "", "http", "https":
	default:
		return nil, errs.New(errs.InvalidArgument, "default scheme %q: want http or https", opts.DefaultScheme)
	}
	found, err := c.hostsFor(ref.Host, opts.HostsDirs)
	if err != nil {
		return nil, err
	}
	r := &Remote{c: c, ref: ref, opts: opts, header: c.header(), file: found.path, creds: map[string]Credential{}}
	if opts.Debug != nil {
		r.debug = &debugLog{w: opts.Debug}
	}
	r.endpoints = found.endpoints(ref.Host, opts)
	if len(r.endpoints) == 0 {
		return nil, errs.New(errs.FailedPrecondition, "%s allows no host for %s: fallback is off and there is no [host] table", found.path, ref.Host)
	}
	return r, nil
}

// Ref is the name that the remote was opened for.
func (r *Remote) Ref() imageref.Reference { return r.ref }

// hostsFor returns the parsed configuration of one registry host.
func (c *Client) hostsFor(host, override string) (*hostsConfig, error) {
	c.mu.Lock()
	list := override
	if list == "" {
		list = c.cfg.HostsDirs
	}
	d := c.hosts[list]
	if d == nil {
		if len(c.hosts) >= 16 { // overrides come from clients: do not collect them for ever
			clear(c.hosts)
		}
		d = newHostsDirs(list, c.log)
		c.hosts[list] = d
	}
	c.mu.Unlock()
	return d.find(host)
}
