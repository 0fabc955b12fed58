package stream

import (
	"net/http"
	"path"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
)

const (
	tokenBytes = 16
	tokenTime  = time.Minute
	maxTokens  = 1000 // given out and not used
)

// request is one that was asked for by the CRI and may be fetched once.
type request interface {
	serve(s *Server, w http.ResponseWriter, r *http.Request)
}

// tokens are the requests that wait for their client. What is too old goes when
// another is added: an idle server has no clock.
type tokens struct {
	mu  sync.Mutex
	all map[string]waiting
}

type waiting struct {
	request
	until time.Time
}

func (t *tokens) add(kind string, r request) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for k, w := range t.all {
		if now.After(w.until) {
			delete(t.all, k)
		}
	}
	if len(t.all) >= maxTokens {
		return "", errs.New(errs.ResourceExhausted, "%d exec, attach and port-forward requests wait for their clients: try again within %s", maxTokens, tokenTime)
	}
	if t.all == nil {
		t.all = map[string]waiting{}
	}
	token := id.New(tokenBytes)
	t.all[path.Join(kind, token)] = waiting{r, now.Add(tokenTime)}
	return token, nil
}

// take uses a token up.
func (t *tokens) take(kind, token string) (request, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := kind + "/" + token
	w, ok := t.all[key]
	delete(t.all, key)
	return w.request, ok && time.Now().Before(w.until)
}

// The kinds, which are the first words of the paths.
const (
	kindExec    = "exec"
	kindAttach  = "attach"
	kindForward = "portforward"
)

func (s *Server) address(kind string, r request) (string, error) {
	token, err := s.tokens.add(kind, r)
	if err != nil {
		return "", err
	}
	u := s.base
	u.Path = "/" + kind + "/" + token
	return u.String(), nil
}

// GetExec gives out the address of an exec.
func (s *Server) GetExec(r *cri.ExecRequest) (*cri.ExecResponse, error) {
	if err := checkStreams(r.GetContainerId(), r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()); err != nil {
		return nil, err
	}
	if len(r.GetCmd()) == 0 {
		return nil, errs.New(errs.InvalidArgument, "exec: cmd is empty")
	}
	container, err := s.cfg.Pods.Running(s.cfg.Namespace, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	u, err := s.address(kindExec, &session{
		container: container, cmd: r.GetCmd(), exec: true, tty: r.GetTty(), stdin: r.GetStdin(), stdout: r.GetStdout(), stderr: r.GetStderr(),
	})
	return &cri.ExecResponse{Url: u}, err
}

// GetAttach gives out the address of an attach.
func (s *Server) GetAttach(r *cri.AttachRequest) (*cri.AttachResponse, error) {
	if err := checkStreams(r.GetContainerId(), r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()); err != nil {
		return nil, err
	}
	container, err := s.cfg.Pods.Running(s.cfg.Namespace, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	u, err := s.address(kindAttach, &session{
		container: container, tty: r.GetTty(), stdin: r.GetStdin(), stdout: r.GetStdout(), stderr: r.GetStderr(),
	})
	return &cri.AttachResponse{Url: u}, err
}

// GetPortForward gives out the address of a port-forward.
func (s *Server) GetPortForward(r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	for _, p := range r.GetPort() {
		if p <= 0 || p > 65535 {
			return nil, errs.New(errs.InvalidArgument, "port %d is not valid", p)
		}
	}
	pod, err := s.cfg.Pods.Ready(s.cfg.Namespace, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	u, err := s.address(kindForward, &forward{pod: pod, ports: r.GetPort()})
	return &cri.PortForwardResponse{Url: u}, err
}

func checkStreams(container string, tty, stdin, stdout, stderr bool) error {
	switch {
	case container == "":
		return errs.New(errs.InvalidArgument, "container_id is empty")
	case tty && stderr:
		return errs.New(errs.InvalidArgument, "a terminal has one output: tty and stderr exclude each other")
	case !stdin && !stdout && !stderr:
		return errs.New(errs.InvalidArgument, "one of stdin, stdout and stderr is needed")
	}
	return nil
}
