package client

import (
	"context"

	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/api/types/transfer"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// Credential is what a registry is told of the user.
type Credential struct {
	Username string
	Secret   string
	Refresh  bool // Secret is an identity token
}

// CredentialFunc finds the credential for a registry host; the zero one is
// anonymous.
type CredentialFunc func(ctx context.Context, host string) (Credential, error)

// Watch is told of a transfer's progress.
type Watch func(*transfer.Progress)

// Transfer moves an image from src to dst and tells watch about it.
func (c *Client) Transfer(ctx context.Context, src, dst proto.Message, watch Watch) error {
	from, err := pack(src)
	if err != nil {
		return err
	}
	to, err := pack(dst)
	if err != nil {
		return err
	}
	r := &transferapi.TransferRequest{Source: from, Destination: to, Options: &transferapi.TransferOptions{}}
	if watch == nil {
		_, err = c.Transfers().Transfer(ctx, r)
		return err
	}
	side, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.OpenStream(side)
	if err != nil {
		return err
	}
	r.Options.ProgressStream = s.ID
	var g errgroup.Group
	g.Go(func() error {
		for {
			var p transfer.Progress
			if s.Receive(&p) != nil { // progress is worth no error of its own
				return nil
			}
			watch(&p)
		}
	})
	_, err = c.Transfers().Transfer(ctx, r)
	if err != nil {
		cancel()
	}
	_ = g.Wait() // it returns none
	return err
}

// AnswerAuth opens a stream on which the daemon asks for credentials, and answers
// until ctx ends. wait returns when it does; its error is the finder's.
func (c *Client) AnswerAuth(ctx context.Context, find CredentialFunc) (sid string, wait func() error, err error) {
	s, err := c.OpenStream(ctx)
	if err != nil {
		return "", nil, err
	}
	var g errgroup.Group
	g.Go(func() error {
		for {
			var q transfer.AuthRequest
			if s.Receive(&q) != nil { // the end of the transfer
				return nil
			}
			cred, ferr := find(ctx, q.GetHost())
			a := &transfer.AuthResponse{}
			switch {
			case ferr != nil || cred.Secret == "":
			case cred.Refresh:
				a.AuthType, a.Secret = transfer.AuthType_REFRESH, cred.Secret
			default:
				a.AuthType, a.Username, a.Secret = transfer.AuthType_CREDENTIALS, cred.Username, cred.Secret
			}
			if err := s.Send(a); err != nil || ferr != nil {
				return ferr
			}
		}
	})
	return s.ID, g.Wait, nil
}
