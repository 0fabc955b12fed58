package podspec

import (
	"path"
	"regexp"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/host/userdb"
)

// UserAsk says who a container shall run as: what its config says, or else its
// image. The answer is in the files of the image: see userdb.Lookup.
func UserAsk(c *cri.ContainerConfig, im ocispec.ImageConfig) (userdb.Ask, error) {
	sec := c.GetLinux().GetSecurityContext()
	var ask userdb.Ask
	switch {
	case sec.GetRunAsUser() != nil && sec.GetRunAsUsername() != "":
		return ask, errs.New(errs.InvalidArgument, "security_context: only one of run_as_user and run_as_username can be set")
	case sec.GetRunAsUser() != nil:
		ask.User = number(sec.GetRunAsUser().GetValue())
	case sec.GetRunAsUsername() != "":
		ask.User = sec.GetRunAsUsername()
	case sec.GetRunAsGroup() != nil:
		return ask, errs.New(errs.InvalidArgument, "security_context: run_as_group needs run_as_user or run_as_username")
	default:
		ask.User, ask.Group, _ = strings.Cut(im.User, ":")
	}
	if g := sec.GetRunAsGroup(); g != nil {
		ask.Group = number(g.GetValue())
	}
	for _, g := range sec.GetSupplementalGroups() {
		if g < 0 || g > userdb.MaxID {
			return ask, errs.New(errs.InvalidArgument, "security_context: supplemental group %d is not between 0 and %d", g, userdb.MaxID)
		}
		ask.Groups = append(ask.Groups, uint32(g))
	}
	switch p := sec.GetSupplementalGroupsPolicy(); p {
	case cri.SupplementalGroupsPolicy_Merge:
	case cri.SupplementalGroupsPolicy_Strict:
		ask.Strict = true
	default:
		return ask, errs.New(errs.InvalidArgument, "security_context: supplemental_groups_policy %d is not known", p)
	}
	return ask, nil
}

// process is what runs: program, environment, directory, user.
func (b *building) process() error {
	p := b.s.Process
	var err error
	if p.Args, err = args(b.c.Config, b.c.Image); err != nil {
		return err
	}
	if p.Cwd, err = cwd(b.c.Config.GetWorkingDir(), b.c.Image.WorkingDir); err != nil {
		return err
	}
	if p.Env, err = b.env(p.Env); err != nil {
		return err
	}
	p.Terminal = b.c.Config.GetTty()
	p.NoNewPrivileges = b.sec.GetNoNewPrivs()
	umask := p.User.Umask
	p.User = specs.User{UID: b.c.User.UID, GID: b.c.User.GID, AdditionalGids: b.c.User.Groups, Umask: umask}
	p.Rlimits = b.rlimits(p.Rlimits)
	b.oom(b.c.Config.GetLinux().GetResources().GetOomScoreAdj())
	b.s.Root.Readonly = b.sec.GetReadonlyRootfs()
	return nil
}

// args are the program and its arguments: a command of the config takes the place of
// the image's entrypoint and of its arguments; args of the config only of those.
func args(c *cri.ContainerConfig, im ocispec.ImageConfig) ([]string, error) {
	command, args := c.GetCommand(), c.GetArgs()
	if len(command) == 0 {
		command = im.Entrypoint
		if len(args) == 0 {
			args = im.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 {
		return nil, errs.New(errs.InvalidArgument, "neither the config has a command nor the image an entrypoint or a command")
	}
	if all[0] == "" {
		return nil, errs.New(errs.InvalidArgument, "the command is an empty string")
	}
	return all, noZero("argument", all)
}

// noZero refuses what execve(2) would cut.
func noZero(what string, all []string) error {
	for _, s := range all {
		if strings.ContainsRune(s, 0) {
			return errs.New(errs.InvalidArgument, "%s %q holds a zero byte", what, s)
		}
	}
	return nil
}

// handles are paths that lead to open files of whoever sets the container up
// (CVE-2024-21626).
var handles = regexp.MustCompile(`^/proc/([0-9]+|self|thread-self)(/task/[0-9]+)?/(fd|fdinfo|root|cwd|exe|ns|map_files)(/|$)`)

func cwd(config, image string) (string, error) {
	dir := config
	if dir == "" {
		dir = image
	}
	dir = path.Join("/", dir)
	if handles.MatchString(dir) {
		return "", errs.New(errs.InvalidArgument, "working directory %s leads to an open file of another process", dir)
	}
	return dir, noZero("working directory", []string{dir})
}

// env is the environment: base spec, image, config; the last one says.
func (b *building) env(base []string) ([]string, error) {
	out := slices.Clone(base)
	if len(out) == 0 {
		out = append(out, pathDefault)
	}
	name := b.pod.Name
	if name == "" && b.pod.UTS == "" {
		name = b.host.Hostname
	}
	if name != "" {
		out = setEnv(out, "HOSTNAME", name)
	}
	if b.c.Config.GetTty() {
		out = setEnv(out, "TERM", "xterm")
	}
	for _, e := range b.c.Image.Env {
		if k, v, _ := strings.Cut(e, "="); k != "" {
			out = setEnv(out, k, v)
		}
	}
	for _, kv := range b.c.Config.GetEnvs() {
		k := kv.GetKey()
		if k == "" || strings.Contains(k, "=") {
			return nil, errs.New(errs.InvalidArgument, "environment variable %q: a name is not empty and has no =", k)
		}
		out = setEnv(out, k, string(kv.GetValue()))
	}
	return out, noZero("environment variable", out)
}

func setEnv(all []string, k, v string) []string {
	for i, e := range all {
		if name, _, _ := strings.Cut(e, "="); name == k {
			all[i] = k + "=" + v
			return all
		}
	}
	return append(all, k+"="+v)
}

// rlimits are the base spec's and those of the settings. Nobody without
// CAP_SYS_RESOURCE can raise a hard limit: open files stay below the daemon's.
func (b *building) rlimits(base []specs.POSIXRlimit) []specs.POSIXRlimit {
	out := slices.Clone(base)
	for _, r := range b.h.Settings.Rlimits {
		out = slices.DeleteFunc(out, func(o specs.POSIXRlimit) bool { return o.Type == r.Type })
		out = append(out, r)
	}
	for i, r := range out {
		if r.Type == "RLIMIT_NOFILE" && !b.host.LowerOOM && b.host.HardNOFILE > 0 && r.Hard > b.host.HardNOFILE {
			b.host.warn("nofile", "the limit of open files that is configured for containers is above the daemon's own and is lowered to it")
			out[i].Hard, out[i].Soft = b.host.HardNOFILE, min(r.Soft, b.host.HardNOFILE)
		}
	}
	return out
}

// Range of oom_score_adj (proc(5)).
const minOOM, maxOOM = -1000, 1000

// oom sets how readily the kernel kills the container; it is always set, or it would
// be the daemon's.
func (b *building) oom(want int64) {
	adj := int(min(max(want, minOOM), maxOOM))
	if adj < b.host.OOMScoreAdj && (!b.host.LowerOOM || b.h.Settings.RestrictOOMScoreAdj) {
		b.host.warn("oom", "containers ask for a lower OOM score adjustment than the daemon may give and get the daemon's own: it has no CAP_SYS_RESOURCE, or restrict_oom_score_adj is set")
		adj = b.host.OOMScoreAdj
	}
	b.s.Process.OOMScoreAdj = &adj
}
