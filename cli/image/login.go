package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/imageref"
	"github.com/berthd/berth/cli/credential"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/term"
)

// hostOf is the registry host of an image name in full, or of a bare host.
func hostOf(name string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://"), "/")
	return host
}

func (a *app) loginCommand() *cobra.Command {
	var user, password string
	var stdin, plain bool
	cmd := &cobra.Command{
		Use: "login [flags] [REGISTRY]", Short: "Log in to a registry",
		Long: `Check a user and password with a registry (default docker.io) and keep them where Docker does:
in ~/.docker/config.json or $DOCKER_CONFIG/config.json, or with the credential helper that it names.`,
		Example: "  berth login\n  echo $TOKEN | berth login -u me --password-stdin ghcr.io",
		Args:    session.RangeArgs(0, 1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		host := imageref.DefaultHost
		if len(args) == 1 {
			host = hostOf(args[0])
		}
		if stdin && (password != "" || user == "") {
			return errors.New("--password-stdin needs --username, and excludes --password")
		}
		if err := a.askLogin(&user, &password, stdin, host); err != nil {
			return err
		}
		if err := checkLogin(cmd.Context(), host, user, password, plain); err != nil {
			return fmt.Errorf("log in to %s: %w", host, err)
		}
		f, err := credential.Default()
		if err != nil {
			return err
		}
		if err := f.Put(cmd.Context(), host, credential.Credential{Username: user, Secret: password}); err != nil {
			return err
		}
		fmt.Fprintln(a.Out, "Login succeeded.")
		return nil
	}
	f := cmd.Flags()
	f.StringVarP(&user, "username", "u", "", "user `name`")
	f.StringVarP(&password, "password", "p", "", "`password`; other users of this machine may see it in the list of processes")
	f.BoolVar(&stdin, "password-stdin", false, "read the password from stdin")
	f.BoolVar(&plain, "plain-http", false, "speak http to the registry, without TLS")
	return cmd
}

// maxPassword bounds what is read from stdin, in bytes.
const maxPassword = 64 << 10

// askLogin gets what the flags do not say.
func (a *app) askLogin(user, password *string, stdin bool, host string) error {
	if stdin {
		b, err := io.ReadAll(io.LimitReader(a.In, maxPassword))
		*password = strings.TrimRight(string(b), "\r\n")
		if err == nil && *password == "" {
			err = errors.New("stdin holds no password")
		}
		return err
	}
	if (*user == "" || *password == "") && !term.Is(a.In) {
		return errors.New("stdin is no terminal to ask at: use --username and --password-stdin")
	}
	if *user == "" {
		fmt.Fprintf(a.Err, "User name for %s: ", host)
		line, err := bufio.NewReader(a.In).ReadString('\n')
		if err != nil {
			return err
		}
		*user = strings.TrimSpace(line)
	}
	if *password == "" {
		fmt.Fprint(a.Err, "Password: ")
		p, err := term.Secret(a.In)
		fmt.Fprintln(a.Err)
		if err != nil {
			return err
		}
		*password = p
	}
	if *user == "" || *password == "" {
		return errors.New("a user name and a password are needed")
	}
	return nil
}

// loginTime bounds each question to the registry.
const loginTime = 30 * time.Second

var challengePart = regexp.MustCompile(`(\w+)="([^"]*)"`)

// checkLogin asks a registry whether it takes the credential (Distribution spec 1.1
// and the token specification of distribution/distribution).
func checkLogin(ctx context.Context, host, user, password string, plain bool) error {
	if host == imageref.DefaultHost {
		host = "registry-1.docker.io"
	}
	scheme := "https"
	if plain || loopback(host) {
		scheme = "http"
	}
	ctx, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	resp, err := ask(ctx, scheme+"://"+host+"/v2/", user, password)
	if err != nil {
		return err
	}
	challenge := resp.Header.Get("WWW-Authenticate")
	if resp.StatusCode != http.StatusUnauthorized {
		return verdict(resp)
	}
	if !strings.HasPrefix(strings.ToLower(challenge), "bearer ") {
		return verdict(resp)
	}
	part := map[string]string{}
	for _, m := range challengePart.FindAllStringSubmatch(challenge, -1) {
		part[m[1]] = m[2]
	}
	realm, err := url.Parse(part["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && scheme == "https" {
		return fmt.Errorf("its token server is %q: that is not safe to send a password to", part["realm"])
	}
	q := realm.Query()
	q.Set("service", part["service"])
	q.Set("account", user)
	realm.RawQuery = q.Encode()
	if resp, err = ask(ctx, realm.String(), user, password); err != nil {
		return err
	}
	return verdict(resp)
}

func ask(ctx context.Context, u, user, password string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	r.SetBasicAuth(user, password)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	return resp, resp.Body.Close()
}

func verdict(resp *http.Response) error {
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return errs.New(errs.Unauthenticated, "the user name or the password is wrong")
	}
	return fmt.Errorf("%s answers %s", resp.Request.URL.Host, resp.Status)
}

// loopback hosts are spoken to without TLS, as the daemon does.
func loopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout [REGISTRY]", Short: "Forget the password of a registry",
		Example: "  berth logout ghcr.io", Args: session.RangeArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			host := imageref.DefaultHost
			if len(args) == 1 {
				host = hostOf(args[0])
			}
			f, err := credential.Default()
			if err != nil {
				return err
			}
			there, err := f.Remove(cmd.Context(), host)
			if err == nil && !there {
				err = errs.New(errs.NotFound, "you are not logged in to %s", host)
			}
			if err == nil {
				fmt.Fprintln(a.Out, "Removed the credential of", host+".")
			}
			return err
		},
	}
}
