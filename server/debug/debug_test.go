package debug

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/base/tally"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	b, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(b)
}

// TestPage: the usual library's parser takes every page, hostile labels included, and
// finds the numbers in it.
func TestPage(t *testing.T) {
	var times tally.Times
	times.Add(time.Second)
	r := NewRequests(true)
	_, _ = r.Unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/a.S/M"}, func(context.Context, any) (any, error) {
		return nil, status.Error(codes.NotFound, "x")
	})
	_ = r.Stream(nil, nil, &grpc.StreamServerInfo{FullMethod: "/a.S/L", IsServerStream: true}, func(any, grpc.ServerStream) error { return nil })
	c := Config{Sources: []Source{Build("1", "r"), Process, r.Collect, func(_ context.Context, p *Page) {
		p.Gauge("odd", "With \\ and\nline.", 1.5, Label{"l", "a\"b\\c\nd"})
		p.Histogram("h_seconds", "H.", times.Read())
		p.Counter("odd_total", "Interleaved.", 2)
		p.Gauge("odd", "", 3, Label{"l", "2"})
	}}}
	code, body := get(t, Metrics(c), "/v1/metrics")
	if code != 200 {
		t.Fatal(code, body)
	}
	if _, err := promlint.New(strings.NewReader(body)).Lint(); err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	for _, want := range []string{
		`grpc_server_handled_total{grpc_code="NotFound",grpc_method="M",grpc_service="a.S",grpc_type="unary"} 1`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="M",grpc_service="a.S",grpc_type="unary"} 0`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="L",grpc_service="a.S",grpc_type="server_stream"} 1`,
		`grpc_server_handling_seconds_count{grpc_method="M",grpc_service="a.S",grpc_type="unary"} 1`,
		`h_seconds_bucket{le="1"} 1`, `h_seconds_bucket{le="0.5"} 0`, `h_seconds_bucket{le="+Inf"} 1`, "h_seconds_sum 1\n",
		`odd{l="a\"b\\c\nd"} 1.5`, `containerd_build_info_total{revision="r",version="1"} 1`, "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
	if strings.Count(body, "# TYPE odd gauge") != 1 {
		t.Error("a family is not in one piece")
	}
}

func TestHealthAndProfiles(t *testing.T) {
	sick := Config{Health: func(context.Context) error { return errors.New("the database is gone") }}
	if code, body := get(t, Metrics(sick), "/healthz"); code != 503 || !strings.Contains(body, "database") {
		t.Error(code, body)
	}
	if code, _ := get(t, Metrics(Config{}), "/healthz"); code != 200 {
		t.Error(code)
	}
	if code, _ := get(t, Metrics(Config{}), "/debug/pprof/heap"); code != 404 {
		t.Errorf("profiles on the metrics address: %d", code)
	}
	if code, body := get(t, All(Config{}), "/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(body, "goroutine profile") {
		t.Error(code)
	}
}
