package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	contentapi "github.com/containerd/containerd/api/services/content/v1"

	"github.com/berthd/berth/base/errs"
)

// maxDocument is the largest manifest or config that is read, in bytes.
const maxDocument = 8 << 20

// CopyBlob writes a blob to w.
func (c *Client) CopyBlob(ctx context.Context, w io.Writer, digest string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Content().Read(ctx, &contentapi.ReadContentRequest{Digest: digest})
	if err != nil {
		return err
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(m.GetData()); err != nil {
			return err
		}
	}
}

// bounded collects at most maxDocument bytes.
type bounded struct{ data []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.data)+len(p) > maxDocument {
		return 0, errs.New(errs.ResourceExhausted, "it has more than %d bytes", maxDocument)
	}
	b.data = append(b.data, p...)
	return len(p), nil
}

// Document reads a small blob: a manifest, an index or a config.
func (c *Client) Document(ctx context.Context, digest string) ([]byte, error) {
	var b bounded
	if err := c.CopyBlob(ctx, &b, digest); err != nil {
		return nil, fmt.Errorf("read %s: %w", digest, err)
	}
	return b.data, nil
}

// ingestPiece is how many bytes go in one message of an ingest.
const ingestPiece = 1 << 20

// Ingest writes a blob from r under a ref of its own. A size below 0 and an empty
// digest are not checked. It returns the number of bytes; what was written before an
// error is given up.
func (c *Client) Ingest(ctx context.Context, ref string, r io.Reader, size int64, digest string, labels map[string]string) (int64, error) {
	n, err := c.ingest(ctx, ref, r, size, digest, labels)
	if err == nil {
		return n, nil
	}
	_, aerr := c.Content().Abort(context.WithoutCancel(ctx), &contentapi.AbortRequest{Ref: ref})
	return n, errors.Join(err, errs.Ignore(aerr, errs.NotFound))
}

func (c *Client) ingest(ctx context.Context, ref string, r io.Reader, size int64, digest string, labels map[string]string) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Content().Write(ctx)
	if err != nil {
		return 0, err
	}
	total := max(size, 0)
	send := func(m *contentapi.WriteContentRequest) error {
		m.Ref, m.Total, m.Expected = ref, total, digest
		if err := s.Send(m); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		_, err := s.Recv()
		return err
	}
	if err := send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_STAT}); err != nil {
		return 0, err
	}
	buf := make([]byte, ingestPiece)
	var offset int64
	for {
		n, rerr := io.ReadFull(r, buf)
		if n > 0 {
			if err := send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Offset: offset, Data: buf[:n]}); err != nil {
				return offset, err
			}
			offset += int64(n)
		}
		if errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF) {
			break
		}
		if rerr != nil {
			return offset, rerr
		}
	}
	return offset, send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_COMMIT, Offset: offset, Labels: labels})
}
