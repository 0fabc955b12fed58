package registry

import (
	"context"
	"errors"
	"net/http"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/imageref"
)

// Report says how a name would be pulled from here and now.
type Report struct {
	Ref      string
	File     string   // hosts.toml or directory that matched; "" if none did
	Warnings []string // what is odd in it
	Hosts    []HostReport
}

// HostReport is what one host said; hosts are in configured order.
type HostReport struct {
	URL          string        // API root
	Upstream     bool          // the registry itself, or `server`
	Capabilities []string      // as configured
	Resting      time.Duration // it is asked last for this long, because it failed
	Asked        bool          // false: it may not resolve names
	Took         time.Duration
	Status       int    // 0: no answer, or no status of interest
	Credential   string // where the credential came from; "" if none was wanted
	Found        ocispec.Descriptor
	Err          error  // nil: it serves the name
	Hint         string // what a person can do about Err
}

// Check asks every host that a pull of ref might ask, and not only until one
// serves it. The error is about configuration alone: hosts' own are in the report.
func (c *Client) Check(ctx context.Context, ref imageref.Reference, opts Options) (Report, error) {
	r, err := c.Open(ref, opts)
	if err != nil {
		return Report{Ref: ref.String()}, err
	}
	rep := Report{Ref: ref.String(), File: r.file}
	if found, err := c.hostsFor(ref.Host, opts.HostsDirs); err == nil {
		rep.Warnings = found.warnings
	}
	for _, e := range r.endpoints {
		rep.Hosts = append(rep.Hosts, r.checkHost(ctx, e))
		if ctx.Err() != nil {
			return rep, context.Cause(ctx)
		}
	}
	return rep, nil
}

func (r *Remote) checkHost(ctx context.Context, e *endpoint) HostReport {
	h := HostReport{
		URL: e.scheme + "://" + e.host + e.path, Upstream: e.upstream, Capabilities: e.caps.names(), Asked: e.caps&canResolve != 0,
	}
	if until := r.c.health.rests(e.origin(), time.Now()); !until.IsZero() {
		h.Resting = time.Until(until).Round(time.Second)
	}
	if !h.Asked {
		return h
	}
	began := time.Now()
	h.Found, h.Err = r.resolveAt(ctx, e, r.ref.Object(), false)
	h.Took = time.Since(began)
	h.URL = r.spoken(e) + e.path
	var status *StatusError
	switch {
	case h.Err == nil:
		h.Status = http.StatusOK
	case errors.As(h.Err, &status):
		h.Status = status.Code
	}
	if h.Err != nil {
		h.Hint = r.hint(e, h.Err)
		h.Found = ocispec.Descriptor{}
	}
	r.mu.Lock()
	h.Credential = r.creds[e.host].Source
	r.mu.Unlock()
	return h
}
