// Package apparmor has the profile that containers run under which ask for the
// runtime's own, and loads it into the kernel by apparmor_parser when it is first
// needed. It reads which profiles are loaded; it owns none but its own.
package apparmor

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/base/errs"
)

// Default is the name of the profile: the one that policies of clusters expect.
const Default = "cri-containerd.apparmor.d"

// Enabled reports whether the kernel enforces AppArmor profiles.
func Enabled() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(b), "Y")
}

// profile is apparmor.d(5). What it forbids is forbidden already by read-only and
// masked paths, by capabilities and by seccomp: this holds when one of those does
// not. @NAME@ is the profile's name.
const profile = `@ABI@
profile @NAME@ flags=(attach_disconnected,mediate_deleted) {
  network,
  unix,
  capability,
  file,
  umount,

  # Its own processes, and the host's that look after it.
  ptrace (read, readby, trace, tracedby) peer=@NAME@,
  signal (send, receive) peer=@NAME@,
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,

  deny mount,

  # What reaches the whole machine by one write or read.
  deny /proc/kcore rwklx,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/{acpi,bus,fs,irq,scsi}/** wklx,
  deny /proc/{latency_stats,timer_list,timer_stats,sched_debug} wklx,

  # Kernel variables, but for those of network and IPC namespaces.
  deny /proc/sys/{abi,crypto,debug,dev,sunrpc,user,vm}/** wklx,
  deny /proc/sys/fs/{[^m]**,mount-max} wklx,
  deny /proc/sys/kernel/{[^dms]*,d[^o]*,mod*,max*,s[^eh]*,se[^m]*} wklx,
  deny /proc/sys/kernel/{keys,pty,random,seccomp,usermodehelper,yama,firmware_config}/** wklx,

  # Devices, drivers and firmware; cgroups stay.
  deny /sys/{block,bus,class,dev,devices,hypervisor,kernel,module,power}/** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}
`

// Text is the profile's text under a name.
func Text(name string) string {
	abi := ""
	if _, err := os.Stat("/etc/apparmor.d/abi/3.0"); err == nil {
		abi = "abi <abi/3.0>,\n" // the rules are written for it
	}
	return strings.NewReplacer("@ABI@", abi, "@NAME@", name).Replace(profile)
}

// loadTime bounds the run of apparmor_parser.
const loadTime = 30 * time.Second

var loading sync.Mutex

// Loaded reports whether a profile is in the kernel. The default one is put there if
// it is not.
func Loaded(name string) (bool, error) {
	loading.Lock()
	defer loading.Unlock()
	if ok, err := inKernel(name); err != nil || ok || name != Default {
		return ok, err
	}
	if err := load(Default); err != nil {
		return false, err
	}
	return inKernel(name)
}

func load(name string) error {
	program, err := exec.LookPath("apparmor_parser")
	if err != nil {
		return errs.New(errs.FailedPrecondition, "load AppArmor profile %s: apparmor_parser is not installed", name)
	}
	var out bytes.Buffer
	cmd := exec.Command(program, "--skip-cache", "--replace")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(Text(name)), &out, &out
	if err = cmd.Start(); err == nil {
		t := time.AfterFunc(loadTime, func() { _ = cmd.Process.Kill() }) // it has ended if that fails
		err = cmd.Wait()
		t.Stop()
	}
	if err != nil {
		return errs.New(errs.FailedPrecondition, "load AppArmor profile %s: %w: %s", name, err, strings.TrimSpace(out.String()))
	}
	return nil
}

func inKernel(name string) (bool, error) {
	f, err := os.Open("/sys/kernel/security/apparmor/profiles")
	if errors.Is(err, fs.ErrNotExist) {
		return false, errs.New(errs.FailedPrecondition, "securityfs is not mounted: it is not known which AppArmor profiles are loaded")
	}
	if err != nil {
		return false, err
	}
	defer f.Close() // only read from
	s := bufio.NewScanner(f)
	for s.Scan() { // "name (mode)"
		if i := strings.LastIndex(s.Text(), " ("); i >= 0 && s.Text()[:i] == name {
			return true, nil
		}
	}
	return false, s.Err()
}
