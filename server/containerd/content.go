package containerd

import (
	"context"
	"errors"
	"io"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/filter"
	"github.com/berthd/berth/engine/gc"
	"github.com/berthd/berth/store"
)

// Content serves containerd.services.content.v1.
type Content struct {
	api.UnimplementedContentServer
	Store *store.Store
	GC    *gc.Collector
}

// readChunk is how many bytes go into one message of a read.
const readChunk = 1 << 20

func toContent(c store.Content) *api.Info {
	return &api.Info{Digest: c.Digest.String(), Size: c.Size, CreatedAt: stamp(c.CreatedAt), UpdatedAt: stamp(c.UpdatedAt), Labels: c.Labels}
}

func toStatus(s store.IngestStatus) *api.Status {
	return &api.Status{Ref: s.Ref, Offset: s.Offset, Total: s.Total, Expected: s.Expected.String(), StartedAt: stamp(s.StartedAt), UpdatedAt: stamp(s.UpdatedAt)}
}

func checkDigest(s string) (digest.Digest, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return "", errs.New(errs.InvalidArgument, "digest %.80q: %v", s, err)
	}
	return d, nil
}

func (s Content) Info(ctx context.Context, r *api.InfoRequest) (*api.InfoResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	dg, err := checkDigest(r.GetDigest())
	if err != nil {
		return nil, err
	}
	c, err := store.Get(ctx, v, func(tx *store.Tx) (store.Content, error) { return tx.Content(dg) })
	return &api.InfoResponse{Info: toContent(c)}, err
}

func (s Content) Update(ctx context.Context, r *api.UpdateRequest) (*api.UpdateResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	dg, err := checkDigest(r.GetInfo().GetDigest())
	if err != nil {
		return nil, err
	}
	c, err := store.Set(ctx, v, func(tx *store.Tx) (store.Content, error) {
		return tx.UpdateContent(store.Content{Digest: dg, Labels: r.GetInfo().GetLabels()}, paths(r.GetUpdateMask())...)
	})
	return &api.UpdateResponse{Info: toContent(c)}, err
}

func (s Content) List(r *api.ListContentRequest, out api.Content_ListServer) error {
	v, err := in(out.Context(), s.Store)
	if err != nil {
		return err
	}
	l, err := store.Get(out.Context(), v, func(tx *store.Tx) ([]store.Content, error) { return tx.Contents(r.GetFilters()...) })
	if err != nil {
		return err
	}
	for len(l) > 0 {
		n := min(listBatch, len(l))
		if err := out.Send(&api.ListContentResponse{Info: convert(l[:n], toContent)}); err != nil {
			return err
		}
		l = l[n:]
	}
	return nil
}

func (s Content) Delete(ctx context.Context, r *api.DeleteContentRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	dg, err := checkDigest(r.GetDigest())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.GC.Remove(ctx, v, false, func(tx *store.Tx) error { return tx.DeleteContent(dg) })
}

func (s Content) Read(r *api.ReadContentRequest, out api.Content_ReadServer) error {
	v, err := in(out.Context(), s.Store)
	if err != nil {
		return err
	}
	dg, err := checkDigest(r.GetDigest())
	if err != nil {
		return err
	}
	f, err := v.OpenContent(out.Context(), dg)
	if err != nil {
		return err
	}
	defer f.Close() // only read from
	offset, size := r.GetOffset(), r.GetSize()
	if size == 0 {
		size = f.Size - offset
	}
	if offset < 0 || size < 0 || offset > f.Size || offset+size > f.Size {
		return errs.New(errs.OutOfRange, "read %d bytes at %d of content %s, which has %d bytes", size, offset, dg, f.Size)
	}
	buf := make([]byte, min(size, readChunk))
	for end := offset + size; offset < end; {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), end-offset)], offset)
		if n == 0 && err != nil {
			return err
		}
		if err := out.Send(&api.ReadContentResponse{Offset: offset, Data: buf[:n]}); err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}

func (s Content) Status(ctx context.Context, r *api.StatusRequest) (*api.StatusResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	all, err := v.Ingests(ctx)
	for _, st := range all {
		if st.Ref == r.GetRef() {
			return &api.StatusResponse{Status: toStatus(st)}, nil
		}
	}
	return nil, errors.Join(err, errs.New(errs.NotFound, "ingest %q: not found", r.GetRef()))
}

func (s Content) ListStatuses(ctx context.Context, r *api.ListStatusesRequest) (*api.ListStatusesResponse, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	f, err := filter.Parse(r.GetFilters()...)
	if err != nil {
		return nil, err
	}
	all, err := v.Ingests(ctx)
	resp := &api.ListStatusesResponse{}
	for _, st := range all {
		if f.Match(func(path []string) (string, bool) { return st.Ref, path[0] == "ref" }) {
			resp.Statuses = append(resp.Statuses, toStatus(st))
		}
	}
	return resp, err
}

func (s Content) Abort(ctx context.Context, r *api.AbortRequest) (*emptypb.Empty, error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, v.Abort(ctx, r.GetRef())
}

// Write is one ingest by one client: each message is answered once, in order.
//
//	client  STAT ref ─┐  WRITE offset data ─┐ …  COMMIT offset size digest ─┐
//	server            └─ offset             └─ offset                       └─ digest
func (s Content) Write(stream api.Content_WriteServer) (err error) {
	ctx := stream.Context()
	v, err := in(ctx, s.Store)
	if err != nil {
		return err
	}
	r, err := stream.Recv()
	if err != nil {
		return err
	}
	if r.GetRef() == "" {
		return errs.New(errs.InvalidArgument, "write content: the first message must name a ref")
	}
	w, err := v.Writer(ctx, store.WriterOptions{Ref: r.GetRef(), Total: r.GetTotal(), Expected: digest.Digest(r.GetExpected())})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for {
		resp, err := writeStep(ctx, w, r)
		if err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		if resp.Action == api.WriteAction_COMMIT {
			return nil
		}
		if r, err = stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func writeStep(ctx context.Context, w *store.Writer, r *api.WriteContentRequest) (*api.WriteContentResponse, error) {
	if err := w.Expect(ctx, r.GetTotal(), digest.Digest(r.GetExpected())); err != nil {
		return nil, err
	}
	resp := &api.WriteContentResponse{Action: r.GetAction()}
	if r.GetAction() != api.WriteAction_STAT {
		if err := writeData(ctx, w, r); err != nil {
			return nil, err
		}
	}
	st, dg := w.Status(), w.Digest()
	if r.GetAction() == api.WriteAction_COMMIT {
		// The commit checks the size that this message or an earlier one gave.
		o := store.CommitOptions{Size: r.GetTotal(), Expected: digest.Digest(r.GetExpected()), Labels: r.GetLabels()}
		if err := w.Commit(ctx, o); err != nil {
			return nil, err
		}
	}
	resp.Offset, resp.Total, resp.StartedAt, resp.UpdatedAt = st.Offset, st.Total, stamp(st.StartedAt), stamp(st.UpdatedAt)
	if st.Offset > 0 || r.GetAction() == api.WriteAction_COMMIT {
		resp.Digest = dg.String()
	}
	return resp, nil
}

// writeData follows the offset rule: zero means from the start, whatever is there;
// any other must be the end of what is there.
func writeData(ctx context.Context, w *store.Writer, r *api.WriteContentRequest) error {
	at := w.Offset()
	if r.GetOffset() > 0 && r.GetOffset() != at {
		return errs.New(errs.OutOfRange, "write at %d, but %d bytes are there: continue at that offset", r.GetOffset(), at)
	}
	if r.GetOffset() == 0 && at > 0 {
		if err := w.Reset(ctx); err != nil {
			return err
		}
	}
	for data := r.GetData(); len(data) > 0; {
		n, err := w.Write(data)
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}
