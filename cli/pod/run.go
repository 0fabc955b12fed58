package pod

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/image"
	"github.com/berthd/berth/cli/logfile"
	"github.com/berthd/berth/cli/session"
)

// runFlags are those of pod run.
type runFlags struct {
	attach, remove bool
	pull           string
	registry       image.RegistryFlags
}

func (a *app) runCommand() *cobra.Command {
	var x runFlags
	cmd := session.OwnStatus(&cobra.Command{
		Use: "run [flags] FILE", Short: "Run a Kubernetes Pod manifest, with no cluster",
		Long: `Run the pods of a manifest ("-" is stdin) and print their ids. Init containers run first, one after the
other. Volumes are emptyDir and hostPath. Without a kubelet nobody probes, and nobody starts ended containers
again: with --attach berth does that itself, by restartPolicy, as long as it runs.`,
		Example: "  berth pod run web.yaml\n  berth pod run --attach --rm job.yaml\n  kubectl get pod web -o yaml | berth pod run -",
		Args:    session.ExactArgs(1),
	})
	cmd.RunE = a.connected(func(ctx context.Context, c *client.Client, args []string) error {
		in := io.Reader(a.In)
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		}
		pods, warnings, err := readManifests(in)
		if err != nil {
			return err
		}
		for _, w := range warnings {
			fmt.Fprintln(a.Err, "berth:", w)
		}
		if x.attach && len(pods) > 1 {
			return errors.New("--attach takes a manifest of one pod")
		}
		for _, m := range pods {
			if err := a.runManifest(ctx, c, m, x); err != nil {
				return err
			}
		}
		return nil
	})
	f := cmd.Flags()
	f.BoolVarP(&x.attach, "attach", "a", false, "show all output until every container has ended, and end as the first that failed; an interrupt stops the pod")
	f.BoolVar(&x.remove, "rm", false, "with --attach: remove the pod at the end")
	f.StringVar(&x.pull, "pull", "", "`WHEN` to get images: always, missing or never (default: as imagePullPolicy says, else missing)")
	f.BoolVar(&x.registry.PlainHTTP, "plain-http", false, "pull by http, without TLS")
	f.StringVar(&x.registry.HostsDir, "hosts-dir", "", "`directory` with hosts.toml files for pulls")
	return cmd
}

// running is a pod that this call has made.
type running struct {
	*app
	c     *client.Client
	m     *manifest
	x     runFlags
	id    string
	dir   string
	conf  *cri.PodSandboxConfig
	facts facts
	say   sync.Mutex // one line at a time
}

func (a *app) runManifest(ctx context.Context, c *client.Client, m *manifest, x runFlags) error {
	m.Metadata.Namespace = cmp.Or(m.Metadata.Namespace, "default")
	m.Metadata.UID = cmp.Or(m.Metadata.UID, id.New(16))
	pl, err := c.Places(ctx)
	if err != nil {
		return err
	}
	r := &running{app: a, c: c, m: m, x: x, dir: pl.Dir("pod-" + m.Metadata.UID)}
	if policy := cmp.Or(m.Spec.RestartPolicy, "Always"); policy != "Never" && !x.attach {
		fmt.Fprintf(a.Err, "berth: pod %s: restartPolicy is %s, but without a kubelet nobody starts its containers again; --attach does while it runs\n", m.Metadata.Name, policy)
	}
	status, err := r.run(ctx)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		return fmt.Errorf("pod %s: %w", m.Metadata.Name, errors.Join(err, r.remove(clean)))
	}
	if !x.attach {
		fmt.Fprintln(a.Out, r.id)
		return nil
	}
	free, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	if x.remove {
		err = r.remove(free)
	} else if ctx.Err() != nil {
		err = stopPod(free, c, &cri.PodSandbox{Id: r.id}, r.grace())
	}
	if err == nil && status != 0 {
		return session.ExitCode{Code: int(status & 0xff)}
	}
	return err
}

// cleanTime bounds the taking back of a pod.
const cleanTime = 2 * time.Minute

func (r *running) grace() int64 {
	if g := r.m.Spec.TerminationGrace; g != nil {
		return *g
	}
	return 30 // Kubernetes' default, in seconds
}

// remove takes everything back.
func (r *running) remove(ctx context.Context) error {
	if r.id != "" {
		if err := stopPod(ctx, r.c, &cri.PodSandbox{Id: r.id}, 1); err != nil {
			return err
		}
		if _, err := r.c.Pods().RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: r.id}); err != nil {
			return err
		}
	}
	return os.RemoveAll(r.dir)
}

// removeFiles removes the logs and volumes of a pod that this command line has made.
func removeFiles(ctx context.Context, c *client.Client, p *cri.PodSandbox) error {
	dir := p.GetAnnotations()[annotationDir]
	if dir == "" {
		return nil
	}
	pl, err := c.Places(ctx)
	if err != nil {
		return err
	}
	if uid := p.GetMetadata().GetUid(); filepath.Clean(dir) != pl.Dir("pod-"+uid) || filepath.Base(uid) != uid {
		return nil // not a place of ours
	}
	return os.RemoveAll(dir)
}

// run makes the pod and starts its containers; attached, it waits for their end.
func (r *running) run(ctx context.Context) (uint32, error) {
	if err := r.m.makeVolumes(r.dir); err != nil {
		return 0, err
	}
	var err error
	if r.conf, err = r.m.sandbox(r.dir); err != nil {
		return 0, err
	}
	p, err := r.c.Pods().RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: r.conf, RuntimeHandler: r.m.Spec.RuntimeClassName})
	if err != nil {
		return 0, err
	}
	r.id = p.GetPodSandboxId()
	s, err := r.c.Pods().PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: r.id})
	if err != nil {
		return 0, err
	}
	r.facts = facts{ip: s.GetStatus().GetNetwork().GetIp(), dir: r.dir}
	for _, k := range r.m.Spec.InitContainers {
		if err := r.initialise(ctx, k); err != nil {
			return 0, err
		}
	}
	var started []startedContainer
	for _, k := range r.m.Spec.Containers {
		cid, err := r.start(ctx, k, 0)
		if err != nil {
			return 0, err
		}
		started = append(started, startedContainer{k, cid})
	}
	if !r.x.attach {
		return 0, nil
	}
	return r.attend(ctx, started)
}

type startedContainer struct {
	spec ctrSpec
	id   string
}

// initialise runs an init container to its end; one that restarts always is a
// sidecar and goes on.
func (r *running) initialise(ctx context.Context, k ctrSpec) error {
	cid, err := r.start(ctx, k, 0)
	if err != nil || k.RestartPolicy == "Always" {
		return err
	}
	status, err := r.wait(ctx, cid)
	if err == nil && status != 0 {
		var tail bytes.Buffer
		_ = logfile.Read(ctx, r.logOf(k, 0), logfile.Options{Tail: 5}, func(e logfile.Entry) error { tail.Write(e.Bytes()); return nil }) // it only helps
		err = fmt.Errorf("init container %s ended with status %d; its last lines:\n%s", k.Name, status, tail.String())
	}
	return err
}

func (r *running) logOf(k ctrSpec, attempt uint32) string {
	return filepath.Join(r.conf.GetLogDirectory(), k.Name, fmt.Sprintf("%d.log", attempt))
}

func (r *running) wait(ctx context.Context, cid string) (uint32, error) {
	w, err := r.c.Tasks().Wait(ctx, &tasksapi.WaitRequest{ContainerID: cid})
	if err == nil || ctx.Err() != nil || !errs.Is(err, errs.NotFound) {
		return w.GetExitStatus(), err
	}
	// It has ended so fast that its task is gone: the CRI remembers.
	s, err := r.c.Pods().ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: cid})
	return uint32(s.GetStatus().GetExitCode()), err
}

// start gets the image, makes a container and starts it.
func (r *running) start(ctx context.Context, k ctrSpec, attempt uint32) (string, error) {
	f := r.facts
	var err error
	if f.image, err = r.image(ctx, k); err != nil {
		return "", fmt.Errorf("container %s: %w", k.Name, err)
	}
	config, err := r.m.container(k, f, attempt)
	if err != nil {
		return "", err
	}
	made, err := r.c.Pods().CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: r.id, Config: config, SandboxConfig: r.conf})
	if err != nil {
		return "", fmt.Errorf("container %s: %w", k.Name, err)
	}
	if _, err := r.c.Pods().StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		return "", fmt.Errorf("container %s: %w", k.Name, err)
	}
	return made.GetContainerId(), nil
}

// image finds a container's image, or gets it, and returns how the CRI calls it.
func (r *running) image(ctx context.Context, k ctrSpec) (string, error) {
	full, err := image.FullName(k.Image)
	if err != nil {
		return "", err
	}
	pull := r.x.pull
	if pull == "" {
		pull = map[string]string{"Always": "always", "Never": "never"}[k.ImagePullPolicy]
	}
	status := func() (*cri.Image, error) {
		s, err := r.c.PodImages().ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: full}})
		return s.GetImage(), err
	}
	im, err := status()
	if err == nil && (im == nil && pull != "never" || pull == "always") {
		fmt.Fprintln(r.Err, "Getting image", full)
		if err = image.Pull(ctx, r.App, r.c, full, r.x.registry); err == nil {
			im, err = status()
		}
	}
	if err != nil {
		return "", err
	}
	if im == nil {
		return "", errs.New(errs.NotFound, "image %s is not here, and is not to be pulled", full)
	}
	if err := r.notRoot(k, im); err != nil {
		return "", err
	}
	return im.GetId(), nil
}

// notRoot holds runAsNonRoot.
func (r *running) notRoot(k ctrSpec, im *cri.Image) error {
	want := cmp.Or(k.SecurityContext.RunAsNonRoot, r.m.Spec.SecurityContext.RunAsNonRoot)
	if want == nil || !*want {
		return nil
	}
	uid := cmp.Or(k.SecurityContext.RunAsUser, r.m.Spec.SecurityContext.RunAsUser)
	switch {
	case uid != nil && *uid != 0, uid == nil && im.GetUid() != nil && im.GetUid().GetValue() != 0:
		return nil
	case uid == nil && im.GetUsername() != "":
		return errs.New(errs.FailedPrecondition, "runAsNonRoot: the image's user %q is a name, which may be root's: say runAsUser", im.GetUsername())
	}
	return errs.New(errs.FailedPrecondition, "runAsNonRoot: the container would run as root: say runAsUser")
}

// Kubernetes' pauses before a container is started again.
const (
	firstPause = time.Second
	maxPause   = time.Minute
)

// attend shows the output of all containers, starts them again as the policy says,
// and returns the first status that is not 0.
func (r *running) attend(ctx context.Context, all []startedContainer) (uint32, error) {
	var mu sync.Mutex
	var failed uint32
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range all {
		g.Go(func() error {
			status, err := r.attendOne(ctx, s)
			mu.Lock()
			defer mu.Unlock()
			if failed == 0 {
				failed = status
			}
			return err
		})
	}
	err := g.Wait()
	if errs.Is(err, context.Canceled) {
		err = nil // an interrupt: the caller stops the pod
	}
	return failed, err
}

func (r *running) attendOne(ctx context.Context, s startedContainer) (uint32, error) {
	pause := firstPause
	for attempt := uint32(0); ; attempt++ {
		status, err := r.show(ctx, s, attempt)
		if err != nil {
			return 0, err
		}
		policy := cmp.Or(r.m.Spec.RestartPolicy, "Always")
		if policy == "Never" || policy == "OnFailure" && status == 0 {
			return status, nil
		}
		r.line(s.spec, []byte(fmt.Sprintf("ended with status %d; starting again in %s\n", status, pause)))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return status, context.Cause(ctx)
		}
		pause = min(2*pause, maxPause)
		if s.id, err = r.start(ctx, s.spec, attempt+1); err != nil {
			return 0, err
		}
	}
}

// show prints one container's output until it ends.
func (r *running) show(ctx context.Context, s startedContainer, attempt uint32) (uint32, error) {
	ended := make(chan struct{})
	var status uint32
	var werr error
	// owner: it closes ended, for which the reading below waits.
	go func() {
		defer close(ended)
		status, werr = r.wait(ctx, s.id)
		time.Sleep(lastLines)
	}()
	var half []byte
	err := logfile.Read(ctx, r.logOf(s.spec, attempt), logfile.Options{Tail: -1, Ended: ended}, func(e logfile.Entry) error {
		half = append(half, e.Bytes()...)
		if !e.Partial {
			r.line(s.spec, half)
			half = half[:0]
		}
		return nil
	})
	if len(half) > 0 {
		r.line(s.spec, append(half, '\n'))
	}
	return status, cmp.Or(err, werr)
}

// line prints a line behind its container's name, where there are several.
func (r *running) line(k ctrSpec, text []byte) {
	r.say.Lock()
	defer r.say.Unlock()
	if len(r.m.all()) > 1 {
		fmt.Fprintf(r.Out, "[%s] ", k.Name)
	}
	_, _ = r.Out.Write(text) // nobody is there to be told
}
