package lab

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Registry is Debian's docker-registry on the loopback.
type Registry struct {
	*Process
	Host string // 127.0.0.1:PORT
	Dir  string
}

// Registry starts a registry that keeps its content below the lab.
func (l *Lab) Registry() *Registry {
	l.T.Helper()
	r := &Registry{Host: fmt.Sprintf("127.0.0.1:%d", FreePort(l.T)), Dir: filepath.Join(l.Dir, "registry")}
	config := filepath.Join(l.Dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp: {addr: %q}\n", r.Dir, r.Host)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		l.T.Fatal(err)
	}
	r.Process = Start(l.T, exec.Command(Tool(l.T, "docker-registry"), "serve", config))
	Until(l.T, 20*time.Second, "the registry answers", func() bool {
		resp, err := http.Get("http://" + r.Host + "/v2/")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return r
}
