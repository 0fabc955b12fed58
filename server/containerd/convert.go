package containerd

import (
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/base/spec"
	"github.com/berthd/berth/store"
)

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func toAny(a store.Any) *anypb.Any {
	if a.Empty() {
		return nil
	}
	return &anypb.Any{TypeUrl: a.TypeURL, Value: a.Value}
}

func fromAny(a *anypb.Any) store.Any { return store.Any{TypeURL: a.GetTypeUrl(), Value: a.GetValue()} }

func toAnys(m map[string]store.Any) map[string]*anypb.Any {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]*anypb.Any, len(m))
	for k, v := range m {
		out[k] = &anypb.Any{TypeUrl: v.TypeURL, Value: v.Value}
	}
	return out
}

func fromAnys(m map[string]*anypb.Any) map[string]store.Any {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]store.Any, len(m))
	for k, v := range m {
		out[k] = fromAny(v)
	}
	return out
}

func toDescriptor(d ocispec.Descriptor) *types.Descriptor {
	return &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size, Annotations: d.Annotations}
}

func fromDescriptor(d *types.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.GetMediaType(), Digest: digest.Digest(d.GetDigest()), Size: d.GetSize(), Annotations: d.GetAnnotations()}
}

func toMounts(all []spec.Mount) []*types.Mount {
	out := make([]*types.Mount, 0, len(all))
	for _, m := range all {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out
}

func fromMounts(all []*types.Mount) []spec.Mount {
	out := make([]spec.Mount, 0, len(all))
	for _, m := range all {
		out = append(out, spec.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	return out
}

func paths(m *fieldmaskpb.FieldMask) []string { return m.GetPaths() }

func convert[A, B any](all []A, f func(A) B) []B {
	out := make([]B, 0, len(all))
	for _, a := range all {
		out = append(out, f(a))
	}
	return out
}
