package shim

import (
	"context"
	"encoding/json"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

// Own is the path of berth-shim.
func (l *Launcher) Own() (string, error) { return l.own() }

// Path is the program of a runtime.
func (l *Launcher) Path(runtime string) (string, error) { return l.binary(runtime) }

// Features is what the runtime behind a shim can do: the OCI features document
// (runtime-spec, features.md). A shim that does not tell gives an empty one.
func (l *Launcher) Features(ctx context.Context, runtime string, options spec.Any) (*features.Features, error) {
	info, err := l.Info(ctx, runtime, options)
	if err != nil {
		return nil, err
	}
	out := &features.Features{}
	if raw := info.GetFeatures().GetValue(); len(raw) > 0 {
		if err := json.Unmarshal(raw, out); err != nil {
			return nil, errs.New(errs.DataLoss, "features of runtime %q: %w", runtime, err)
		}
	}
	return out, nil
}
