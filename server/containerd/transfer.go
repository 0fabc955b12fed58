package containerd

import (
	"context"
	"io"
	"net/http"
	"sync"

	api "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/transfer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/engine/image"
	"github.com/berthd/berth/store"
)

// Transfer serves containerd.services.transfer.v1: one method that moves images
// between registries, the store and streams, by the types of its two ends.
type Transfer struct {
	api.UnimplementedTransferServer
	Store   *store.Store
	Images  *image.Images
	Streams *Streams
}

// move is one request with what it needs.
type move struct {
	Transfer
	v     store.Scoped
	watch image.Watcher
}

// Transfer moves. What two ends are not understood together is Unimplemented.
func (s Transfer) Transfer(ctx context.Context, r *api.TransferRequest) (_ *emptypb.Empty, err error) {
	v, err := in(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	src, err := r.GetSource().UnmarshalNew()
	if err != nil {
		return nil, errs.New(errs.InvalidArgument, "source of transfer: %v", err)
	}
	dst, err := r.GetDestination().UnmarshalNew()
	if err != nil {
		return nil, errs.New(errs.InvalidArgument, "destination of transfer: %v", err)
	}
	m := move{Transfer: s, v: v}
	if sid := r.GetOptions().GetProgressStream(); sid != "" {
		st, err := s.Streams.take(v.Namespace(), sid)
		if err != nil {
			return nil, err
		}
		defer st.close()
		q := tellProgress(st)
		defer q.end()
		m.watch = q.put
	}
	return &emptypb.Empty{}, m.run(ctx, src, dst)
}

func (m move) run(ctx context.Context, src, dst proto.Message) error {
	switch src := src.(type) {
	case *transfer.OCIRegistry:
		if dst, ok := dst.(*transfer.ImageStore); ok {
			return m.pull(ctx, src, dst)
		}
	case *transfer.ImageStore:
		switch dst := dst.(type) {
		case *transfer.OCIRegistry:
			return m.push(ctx, src, dst)
		case *transfer.ImageStore:
			return m.tag(ctx, src, dst)
		case *transfer.ImageExportStream:
			return m.export(ctx, src, dst)
		}
	case *transfer.ImageImportStream:
		switch dst := dst.(type) {
		case *transfer.ImageStore:
			return m.importTo(ctx, src, dst)
		case *transfer.ImageExportStream:
			return m.echo(src, dst)
		}
	}
	return errs.New(errs.Unimplemented, "transfer from %s to %s", src.ProtoReflect().Descriptor().Name(), dst.ProtoReflect().Descriptor().Name())
}

// progressQueue sends progress to one client. A client that does not read loses
// some of it, and never holds up the transfer, which others may share.
type progressQueue struct {
	wait chan *anypb.Any
	done chan struct{}
}

func tellProgress(st *stream) *progressQueue {
	q := &progressQueue{wait: make(chan *anypb.Any, 4096), done: make(chan struct{})}
	// owner: end waits for done.
	go func() {
		defer close(q.done)
		for any := range q.wait {
			if st.send(any) != nil { // the client is gone
				for range q.wait {
				}
			}
		}
	}()
	return q
}

func (q *progressQueue) put(p image.Progress) {
	m := &transfer.Progress{Event: p.Event, Name: p.Name, Parents: p.Parents, Progress: p.Progress, Total: p.Total}
	if p.Desc != nil {
		m.Desc = toDescriptor(*p.Desc)
	}
	if any, err := packed(m); err == nil {
		select {
		case q.wait <- any:
		default:
		}
	}
}

// end sends what waits. Nobody may put any more.
func (q *progressQueue) end() {
	close(q.wait)
	<-q.done
}

func fromPlatform(p *types.Platform) ocispec.Platform {
	return ocispec.Platform{OS: p.GetOS(), Architecture: p.GetArchitecture(), Variant: p.GetVariant(), OSVersion: p.GetOsVersion()}
}

func choice(s *transfer.ImageStore) image.Choice {
	return image.Choice{Platforms: convert(s.GetPlatforms(), fromPlatform), AllMetadata: s.GetAllMetadata(), Limit: int(s.GetManifestLimit())}
}

func targets(s *transfer.ImageStore) []image.Target {
	return convert(s.GetUnpacks(), func(u *transfer.UnpackConfiguration) image.Target {
		t := image.Target{Snapshotter: u.GetSnapshotter()}
		if p := u.GetPlatform(); p.GetOS() != "" || p.GetArchitecture() != "" {
			q := fromPlatform(p)
			t.Platform = &q
		}
		return t
	})
}

func rules(s *transfer.ImageStore) []image.NameRule {
	return convert(s.GetExtraReferences(), func(r *transfer.ImageReference) image.NameRule {
		return image.NameRule{Name: r.GetName(), Prefix: r.GetIsPrefix(), Overwrite: r.GetAllowOverwrite(), AddDigest: r.GetAddDigest(), SkipNamedDigest: r.GetSkipNamedDigest()}
	})
}

// registryOptions turns a resolver's settings into those of a call; done ends the
// streams that it uses.
func (m move) registryOptions(r *transfer.OCIRegistry) (o image.RegistryOptions, done func(), err error) {
	res := r.GetResolver()
	o = image.RegistryOptions{HostsDirs: res.GetHostDir(), DefaultScheme: res.GetDefaultScheme()}
	var open []*stream
	done = func() {
		for _, st := range open {
			st.close()
		}
	}
	if h := res.GetHeaders(); len(h) > 0 {
		o.Header = http.Header{}
		for k, v := range h {
			o.Header.Set(k, v)
		}
	}
	if sid := res.GetAuthStream(); sid != "" {
		st, err := m.Streams.take(m.v.Namespace(), sid)
		if err != nil {
			return o, done, err
		}
		open = append(open, st)
		o.Credentials = askClient(st, r.GetReference())
	}
	if sid := res.GetLogsStream(); sid != "" && res.GetHttpDebug() != transfer.HTTPDebug_DISABLED {
		st, err := m.Streams.take(m.v.Namespace(), sid)
		if err != nil {
			return o, done, err
		}
		open = append(open, st)
		o.Debug = newByteWriter(st)
		o.Trace = res.GetHttpDebug() == transfer.HTTPDebug_TRACE || res.GetHttpDebug() == transfer.HTTPDebug_BOTH
	}
	return o, done, nil
}

// askClient asks the client of an auth stream for the credential of a host.
func askClient(st *stream, ref string) image.CredentialFunc {
	var one sync.Mutex // question and answer go together
	return func(_ context.Context, host string) (image.Credential, error) {
		one.Lock()
		defer one.Unlock()
		q, err := packed(&transfer.AuthRequest{Host: host, Reference: ref})
		if err != nil {
			return image.Credential{}, err
		}
		if err := st.send(q); err != nil {
			return image.Credential{}, err
		}
		any, err := st.recv()
		if err != nil {
			return image.Credential{}, err
		}
		var a transfer.AuthResponse
		if err := any.UnmarshalTo(&a); err != nil {
			return image.Credential{}, errs.New(errs.InvalidArgument, "auth stream: %v", err)
		}
		c := image.Credential{Source: "the client"}
		switch a.GetAuthType() {
		case transfer.AuthType_CREDENTIALS:
			c.Username, c.Secret = a.GetUsername(), a.GetSecret()
		case transfer.AuthType_REFRESH:
			c.IdentityToken = a.GetSecret()
		case transfer.AuthType_HEADER:
			c.Header = a.GetSecret()
		default:
			return image.Credential{}, nil
		}
		return c, nil
	}
}

func (m move) pull(ctx context.Context, src *transfer.OCIRegistry, dst *transfer.ImageStore) error {
	ref, err := imageref.Parse(src.GetReference())
	if err != nil {
		return err
	}
	o, done, err := m.registryOptions(src)
	defer done()
	if err != nil {
		return err
	}
	req := image.PullRequest{Ref: ref, Labels: dst.GetLabels(), Choice: choice(dst), Unpack: targets(dst), Registry: o, Watch: m.watch}
	if o.Credentials != nil || o.Header != nil || o.HostsDirs != "" || o.Debug != nil {
		req.Client = src.GetResolver().GetAuthStream() + "/" + src.GetResolver().GetLogsStream() + "/" + o.HostsDirs
	}
	if dst.GetName() != "" {
		req.Names = []string{dst.GetName()}
	}
	req.More = rules(dst)
	_, err = m.Images.Pull(ctx, m.v, req)
	return err
}

func (m move) push(ctx context.Context, src *transfer.ImageStore, dst *transfer.OCIRegistry) error {
	ref, err := imageref.Parse(dst.GetReference())
	if err != nil {
		return err
	}
	o, done, err := m.registryOptions(dst)
	defer done()
	if err != nil {
		return err
	}
	return m.Images.Push(ctx, m.v, image.PushRequest{Name: src.GetName(), Ref: ref, Choice: choice(src), Registry: o, Watch: m.watch})
}

func (m move) tag(ctx context.Context, src, dst *transfer.ImageStore) error {
	// The API has no word for force: a transfer to a name that exists moves it.
	_, err := m.Images.Tag(ctx, m.v, src.GetName(), dst.GetName(), true, dst.GetLabels())
	return err
}

func (m move) export(ctx context.Context, src *transfer.ImageStore, dst *transfer.ImageExportStream) error {
	st, err := m.Streams.take(m.v.Namespace(), dst.GetStream())
	if err != nil {
		return err
	}
	defer st.close()
	names := []string{src.GetName()}
	if src.GetName() == "" {
		names = nil
	}
	for _, r := range src.GetExtraReferences() {
		names = append(names, r.GetName())
	}
	if len(names) == 0 {
		return errs.New(errs.InvalidArgument, "export: name at least one image")
	}
	return m.Images.Export(ctx, m.v, newByteWriter(st), image.ExportRequest{
		Names: names, Choice: image.Choice{Platforms: convert(dst.GetPlatforms(), fromPlatform)}, AllPlatforms: dst.GetAllPlatforms(),
		SkipDocker: dst.GetSkipCompatibilityManifest(), SkipForeign: dst.GetSkipNonDistributable(), Watch: m.watch,
	})
}

func (m move) importTo(ctx context.Context, src *transfer.ImageImportStream, dst *transfer.ImageStore) error {
	st, err := m.Streams.take(m.v.Namespace(), src.GetStream())
	if err != nil {
		return err
	}
	defer st.close()
	_, err = m.Images.Import(ctx, m.v, newByteReader(st), image.ImportRequest{
		IndexName: dst.GetName(), Rules: rules(dst), Labels: dst.GetLabels(), Choice: choice(dst), Unpack: targets(dst),
		Compress: src.GetForceCompress(), Watch: m.watch,
	})
	return err
}

// echo sends an archive back as it came: a client's test of its streams.
func (m move) echo(src *transfer.ImageImportStream, dst *transfer.ImageExportStream) error {
	from, err := m.Streams.take(m.v.Namespace(), src.GetStream())
	if err != nil {
		return err
	}
	defer from.close()
	to, err := m.Streams.take(m.v.Namespace(), dst.GetStream())
	if err != nil {
		return err
	}
	defer to.close()
	_, err = io.CopyBuffer(newByteWriter(to), newByteReader(from), make([]byte, pieceSize))
	return err
}
