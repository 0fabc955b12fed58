package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// The channels of a session over websockets.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelStatus
	channelResize
	channels
)

// protocols are the subprotocols of sessions: version 5 adds the end of stdin, version
// 4 the exit code; before that, the last message was an error's text. Those with
// base64 are for clients that can only read text.
var protocols = map[string]struct{ binary, status bool }{
	"":                                 {true, false},
	"channel.k8s.io":                   {true, false},
	"base64.channel.k8s.io":            {false, false},
	"v4.channel.k8s.io":                {true, true},
	"v4.base64.channel.k8s.io":         {false, true},
	remotecommand.StreamProtocolV5Name: {true, true},
}

func (e *session) serveWebsocket(s *Server, w http.ResponseWriter, r *http.Request) {
	read := func(wanted bool) wsstream.ChannelType {
		if wanted {
			return wsstream.ReadChannel
		}
		return wsstream.IgnoreChannel
	}
	write := func(wanted bool) wsstream.ChannelType {
		if wanted {
			return wsstream.WriteChannel
		}
		return wsstream.IgnoreChannel
	}
	types := make([]wsstream.ChannelType, channels)
	types[channelStdin], types[channelResize] = read(e.stdin), read(e.tty)
	types[channelStdout], types[channelStderr], types[channelStatus] = write(e.stdout), write(e.stderr), wsstream.WriteChannel
	offer := map[string]wsstream.ChannelProtocolConfig{}
	for name, p := range protocols {
		offer[name] = wsstream.ChannelProtocolConfig{Binary: p.binary, Channels: types}
	}
	conn := wsstream.NewConn(offer)
	conn.SetIdleTimeout(s.cfg.IdleTimeout)
	chosen, ch, err := conn.Open(w, r)
	if err != nil {
		s.cfg.Log.Debug("a client could not switch to websockets", "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	// An empty message says that the connection is there.
	first := channelStatus
	switch {
	case e.stdout:
		first = channelStdout
	case e.stderr:
		first = channelStderr
	}
	_, _ = ch[first].Write(nil) // a client that has left is noticed by the session
	ctx, cancel := context.WithCancel(r.Context())
	sizes := make(chan remotecommand.TerminalSize)
	sized := make(chan struct{})
	if e.tty {
		// owner: this function waits for sized, after closing what it reads.
		go func() { defer close(sized); readSizes(ctx, ch[channelResize], sizes) }()
	} else {
		close(sized)
	}
	err = e.run(ctx, s, e.pick(ch[channelStdin], ch[channelStdout], ch[channelStderr], sizes))
	if protocols[chosen].status {
		err = writeStatus(ch[channelStatus], err)
	} else if err != nil {
		_, err = io.WriteString(ch[channelStatus], err.Error())
	}
	if err != nil {
		s.cfg.Log.Debug("a client has left before it was told the end", "error", err)
	}
	cancel()
	_ = conn.Close()
	<-sized
}

// readSizes reads JSON objects {"Width": …, "Height": …}.
func readSizes(ctx context.Context, r io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	d := json.NewDecoder(r)
	for {
		var size remotecommand.TerminalSize
		if d.Decode(&size) != nil {
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// status is a metav1.Status as far as this protocol uses it.
type status struct {
	Status  string         `json:"status"`
	Message string         `json:"message,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	Details *statusDetails `json:"details,omitempty"`
	Code    int            `json:"code,omitempty"`
}

type statusDetails struct {
	Causes []statusCause `json:"causes"`
}

type statusCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// statusOf says how a session ended.
func statusOf(err error) status {
	var exit exitStatus
	switch {
	case err == nil:
		return status{Status: "Success"}
	case errors.As(err, &exit):
		return status{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: fmt.Sprintf("command terminated with non-zero exit code: %v", err),
			Details: &statusDetails{Causes: []statusCause{{remotecommand.ExitCodeCauseType, strconv.Itoa(exit.ExitStatus())}}},
		}
	}
	return status{Status: "Failure", Reason: "InternalError", Message: fmt.Sprintf("Internal error occurred: %v", err), Code: http.StatusInternalServerError}
}

func writeStatus(w io.Writer, err error) error {
	data, merr := json.Marshal(statusOf(err))
	if merr != nil {
		return merr
	}
	_, werr := w.Write(data)
	return werr
}
