package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/failpoint"
	"github.com/berthd/berth/engine/podspec"
	"github.com/berthd/berth/host/cni"
	"github.com/berthd/berth/host/netns"
	"github.com/berthd/berth/store"
)

// podName is what Kubernetes calls unique: one word of a pod's metadata.
func podName(m *cri.PodSandboxMetadata) string {
	return strings.Join([]string{m.GetName(), m.GetNamespace(), m.GetUid(), fmt.Sprint(m.GetAttempt())}, "_")
}

func checkPodConfig(c *cri.PodSandboxConfig) error {
	m := c.GetMetadata()
	if m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "" {
		return errs.New(errs.InvalidArgument, "pod config: metadata needs name, namespace and uid")
	}
	for _, s := range []string{m.GetName(), m.GetNamespace(), m.GetUid(), c.GetHostname()} {
		if strings.ContainsAny(s, "/\x00\n") {
			return errs.New(errs.InvalidArgument, "pod config: %q holds a character that no name may have", s)
		}
	}
	return nil
}

// Run makes a pod and returns its id. The same name asked for again gives the same
// pod, also while it is being made.
//
//	row creating ─> files ─> namespaces ─> plan in the row ─> CNI ADD ─> infra process, if any ─> plugins ─> row ready
//
// Whatever fails, one teardown undoes it all.
func (p *Pods) Run(ctx context.Context, ns string, config *cri.PodSandboxConfig, handler string) (string, error) {
	if err := checkPodConfig(config); err != nil {
		return "", err
	}
	h, err := p.handler(handler)
	if err != nil {
		return "", err
	}
	name := podName(config.GetMetadata())
	return p.do(ctx, "pod/"+ns+"/"+name, "pod "+name, func(ctx context.Context, m *making) (string, error) {
		if old := p.podNamed(ns, name); old != nil {
			if old.State == store.PodReady {
				return old.ID, nil
			}
			// The name belongs to one that is over, or that an earlier daemon had half
			// made: it makes room.
			m.at("removing pod " + old.ID + " of the same name, which is " + string(old.State))
			if err := p.removePod(ctx, key{ns, old.ID}); err != nil {
				return "", err
			}
		}
		return p.make(ctx, m, ns, name, config, handler, h)
	})
}

func (p *Pods) podNamed(ns, name string) *Pod {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for k, pod := range p.mu.pods {
		if k.ns == ns && pod.Name == name {
			return pod
		}
	}
	return nil
}

func (p *Pods) make(ctx context.Context, m *making, ns, name string, config *cri.PodSandboxConfig, handler string, h *Handler) (string, error) {
	pod := &Pod{Namespace: ns, ID: p.cfg.Owner.NewID(), Name: name, Handler: handler, Config: proto.CloneOf(config), hidden: true}
	mine, err := p.hold(ctx, "pod", ns, pod.ID, "run")
	if err != nil {
		return "", err
	}
	defer mine.release()
	if err := p.reserve(ctx, pod, h); err != nil {
		return "", fmt.Errorf("pod %s: %w", name, err)
	}
	failpoint.Here("pod.reserved")
	made, err := p.build(ctx, m, pod, h)
	if err == nil {
		var done func()
		done, err = p.announce(ctx, m, made)
		defer done()
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("pod %s: %w", name, err), p.takeBack(ctx, pod))
	}
	made.State, made.hidden = store.PodReady, false
	row, err := made.row()
	if err == nil {
		err = p.scope(ns).Promise(ctx, func(tx *store.Tx) error { return tx.PutPod(row) })
	}
	if err != nil {
		p.podGone(ctx, p.nriPod(made))
		return "", errors.Join(fmt.Errorf("pod %s: %w", name, err), p.takeBack(ctx, pod))
	}
	p.showPod(made)
	p.tellPod(cri.ContainerEventType_CONTAINER_CREATED_EVENT, made)
	p.tellPod(cri.ContainerEventType_CONTAINER_STARTED_EVENT, made)
	return pod.ID, nil
}

// reserve writes the intent: the pod's row and lease, and the sandbox's row, by
// which clients of containerd's API see the pod.
func (p *Pods) reserve(ctx context.Context, pod *Pod, h *Handler) error {
	row, err := pod.row()
	if err != nil {
		return err
	}
	meta, err := sandboxExtension(pod)
	if err != nil {
		return err
	}
	row, err = store.Set(ctx, p.scope(pod.Namespace), func(tx *store.Tx) (store.Pod, error) {
		r, err := tx.CreatePod(row)
		if err != nil {
			return r, err
		}
		if _, err := tx.CreateLease(store.Lease{ID: pod.ID}); err != nil {
			return r, err
		}
		_, err = tx.CreateSandbox(store.Sandbox{
			ID: pod.ID, Sandboxer: "podsandbox", Runtime: h.Runtime, Options: h.Options, Labels: sandboxLabels(pod.Config), Extensions: meta,
		})
		return r, err
	})
	if err != nil {
		return err
	}
	pod.State, pod.Boot, pod.CreatedAt = row.State, row.Boot, row.CreatedAt
	p.showPod(pod)
	return nil
}

// build makes in the world what the row announces.
func (p *Pods) build(ctx context.Context, m *making, pod *Pod, h *Handler) (*Pod, error) {
	userns, err := podspec.UserNamespace(pod.Config)
	if err != nil {
		return pod, err
	}
	m.at("writing its files")
	if err := p.makeFiles(pod, userns); err != nil {
		return pod, err
	}
	m.at("making its namespaces")
	set, err := p.makeNamespaces(ctx, pod, h, userns)
	if err != nil {
		return pod, err
	}
	failpoint.Here("pod.namespaces")
	if set.Net != "" {
		if pod, err = p.attach(ctx, m, pod, h, set.Net); err != nil {
			return pod, err
		}
	}
	failpoint.Here("pod.attached")
	if h.Sandboxed || sharesPID(pod.Config) {
		m.at("starting its infrastructure process")
		return p.startInfra(ctx, pod, h)
	}
	return pod, nil
}

func nsOptions(c *cri.PodSandboxConfig) *cri.NamespaceOption {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func hostNetwork(c *cri.PodSandboxConfig) bool {
	return nsOptions(c).GetNetwork() == cri.NamespaceMode_NODE
}

func hostIPC(c *cri.PodSandboxConfig) bool { return nsOptions(c).GetIpc() == cri.NamespaceMode_NODE }

// sharesPID reports a pod whose containers share one PID namespace, which needs a
// process to be its init.
func sharesPID(c *cri.PodSandboxConfig) bool { return nsOptions(c).GetPid() == cri.NamespaceMode_POD }

// makeNamespaces pins the pod's namespaces, with its sysctls and hostname in them.
func (p *Pods) makeNamespaces(ctx context.Context, pod *Pod, h *Handler, userns *podspec.Mapping) (netns.Set, error) {
	sysctls, err := podspec.Sysctls(h.Settings, pod.Config)
	if err != nil {
		return netns.Set{}, err
	}
	o := netns.Options{Net: !hostNetwork(pod.Config), IPC: !hostIPC(pod.Config), UTS: !hostNetwork(pod.Config), Hostname: pod.Config.GetHostname(), Sysctls: map[string]string{}}
	for k, v := range sysctls {
		if netns.SysctlInterface(k) == "" { // the others wait for their interface
			o.Sysctls[k] = v
		}
	}
	if userns != nil {
		o.User = &netns.User{UIDs: mappings(userns.UIDs()), GIDs: mappings(userns.GIDs())}
	}
	return p.cfg.Sandbox.Pin(ctx, pod.ID, o)
}

// attach plans the pod's networks, writes the plan down and carries it out.
func (p *Pods) attach(ctx context.Context, m *making, pod *Pod, h *Handler, path string) (*Pod, error) {
	if noNetwork(pod.Config) {
		return pod, nil
	}
	m.at("choosing its networks")
	nets := p.networks(h)
	req, err := p.networkRequest(pod, h, path)
	if err != nil {
		return pod, err
	}
	plan, err := nets.Plan(req)
	if err != nil {
		return pod, err
	}
	planned := *pod
	if planned.Plan, err = plan.Encode(); err != nil {
		return pod, err
	}
	if pod, err = p.putPod(ctx, planned); err != nil {
		return pod, err
	}
	failpoint.Here("pod.planned")
	m.at("attaching it to " + planNames(plan))
	res, err := nets.Add(ctx, plan)
	attached := *pod
	saved, serr := res.Saved.Encode()
	if serr == nil {
		attached.Plan = saved
	}
	for _, ip := range res.PodIPs(p.cfg.Prefer) {
		attached.IPs = append(attached.IPs, ip.String())
	}
	if err := errors.Join(err, serr); err != nil {
		return &attached, err
	}
	if len(attached.IPs) == 0 {
		return &attached, errs.New(errs.FailedPrecondition, "network %s gave the pod no address", planNames(plan))
	}
	return &attached, errors.Join(p.addOwnHost(&attached), p.lateSysctls(&attached, h, path))
}

// lateSysctls sets kernel variables of interfaces, which exist only now.
func (p *Pods) lateSysctls(pod *Pod, h *Handler, path string) error {
	all, err := podspec.Sysctls(h.Settings, pod.Config)
	if err != nil {
		return err
	}
	late := map[string]string{}
	for k, v := range all {
		if netns.SysctlInterface(k) != "" {
			late[k] = v
		}
	}
	if len(late) == 0 {
		return nil
	}
	return netns.Sysctl(path, late)
}

func planNames(plan cni.Saved) string {
	var names []string
	for _, a := range plan.Attachments {
		names = append(names, "network "+a.Network)
	}
	return strings.Join(names, ", ")
}

// takeBack tears down a pod that could not be made, on its own time.
func (p *Pods) takeBack(ctx context.Context, pod *Pod) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	p.mu.RLock()
	now := p.mu.pods[key{pod.Namespace, pod.ID}] // with what has been planned since
	p.mu.RUnlock()
	if now == nil {
		return nil
	}
	if err := p.teardown(ctx, now); err != nil {
		p.log.Error("a pod that could not be made is not all gone; it is listed, so that it can be removed", "pod", pod.ID, "error", err)
		p.unhidePod(key{pod.Namespace, pod.ID})
	}
	return nil
}

func mappings(all []specs.LinuxIDMapping) []netns.Mapping {
	out := make([]netns.Mapping, 0, len(all))
	for _, m := range all {
		out = append(out, netns.Mapping{Inside: m.ContainerID, Outside: m.HostID, Size: m.Size})
	}
	return out
}
