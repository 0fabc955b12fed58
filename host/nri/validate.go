package nri

import (
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"sigs.k8s.io/yaml"

	"github.com/berthd/berth/base/errs"
)

// Validator says what plugins must not do, and which must be there: the keys of
// containerd's default_validator.
type Validator struct {
	RejectOCIHooks             bool
	RejectDefaultSeccomp       bool // a change of the runtime's default profile
	RejectUnconfinedSeccomp    bool
	RejectCustomSeccomp        bool
	RejectNamespaces           bool
	RejectSysctls              bool
	Required                   []string // names of plugins without which no container is made
	TolerateMissingAnnotations string   // annotation of pods that may do without; "": none may
}

// requiredAnnotation names plugins without which one pod's containers are not made.
const requiredAnnotation = "required-plugins.noderesource.dev"

func (v Validator) requires(name string) bool { return slices.Contains(v.Required, name) }

// check applies the rules to what the plugins made of a container.
func (v Validator) check(r *api.ValidateContainerAdjustmentRequest) error {
	if err := v.present(r); err != nil || r.Adjust == nil {
		return err
	}
	o := r.GetOwners().GetOwners()[r.GetContainer().GetId()]
	reject := func(f api.Field, who string) error {
		return errs.New(errs.PermissionDenied, "NRI plugin %s changes %s of the container, which the configuration does not allow", who, f)
	}
	if who := o.GetSimple()[api.Field_OciHooks.Key()]; who != "" && v.RejectOCIHooks {
		return reject(api.Field_OciHooks, who)
	}
	if who := o.GetSimple()[api.Field_SeccompPolicy.Key()]; who != "" {
		was := r.GetContainer().GetLinux().GetSeccompProfile()
		if was == nil && v.RejectUnconfinedSeccomp || was != nil && map[api.SecurityProfile_ProfileType]bool{
			api.SecurityProfile_RUNTIME_DEFAULT: v.RejectDefaultSeccomp, api.SecurityProfile_UNCONFINED: v.RejectUnconfinedSeccomp, api.SecurityProfile_LOCALHOST: v.RejectCustomSeccomp,
		}[was.GetProfileType()] {
			return reject(api.Field_SeccompPolicy, who)
		}
	}
	if len(r.Adjust.GetLinux().GetNamespaces()) > 0 && v.RejectNamespaces {
		return reject(api.Field_Namespace, owner(o, api.Field_Namespace))
	}
	if len(r.Adjust.GetLinux().GetSysctl()) > 0 && v.RejectSysctls {
		return reject(api.Field_Sysctl, owner(o, api.Field_Sysctl))
	}
	return nil
}

func owner(o *api.FieldOwners, f api.Field) string {
	var all []string
	for _, who := range o.GetCompound()[f.Key()].GetOwners() {
		if !slices.Contains(all, who) {
			all = append(all, who)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// present checks that every required plugin has had its say.
func (v Validator) present(r *api.ValidateContainerAdjustmentRequest) error {
	name := r.GetContainer().GetName()
	if text, ok := annotation(r.GetPod(), v.TolerateMissingAnnotations, name); ok {
		yes, err := strconv.ParseBool(text)
		if err != nil {
			return errs.New(errs.InvalidArgument, "annotation %s is %q, which is neither true nor false", v.TolerateMissingAnnotations, text)
		}
		if yes {
			return nil
		}
	}
	required := slices.Clone(v.Required)
	if text, ok := annotation(r.GetPod(), requiredAnnotation, name); ok {
		var more []string
		if err := yaml.Unmarshal([]byte(text), &more); err != nil {
			return errs.New(errs.InvalidArgument, "annotation %s is %q, which is no list of names", requiredAnnotation, text)
		}
		required = append(required, more...)
	}
	for _, n := range required {
		if !slices.ContainsFunc(r.GetPlugins(), func(p *api.PluginInstance) bool { return p.GetName() == n }) {
			return errs.New(errs.FailedPrecondition, "NRI plugin %s is required and not connected: no container is made without it", n)
		}
	}
	return nil
}

// annotation is a pod's for one container, or for all of its containers.
func annotation(pod *api.PodSandbox, key, container string) (string, bool) {
	if key == "" {
		return "", false
	}
	for _, k := range []string{key + "/container." + container, key + "/pod", key} {
		if v, ok := pod.GetAnnotations()[k]; ok {
			return v, true
		}
	}
	return "", false
}
