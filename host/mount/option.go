package mount

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/base/errs"
)

// options are mount(8)'s, sorted by who wants them.
type options struct {
	flags       uintptr   // the kernel, for every file system
	propagation []uintptr // the kernel, in a call of its own
	data        []string  // the file system
	loop        bool
	ids         *idMaps
}

// text is the data argument of mount(2).
func (o options) text() string { return strings.Join(o.data, ",") }

// flagOptions are the words of mount(8) that are flags: set or cleared.
var flagOptions = map[string]struct {
	clear bool
	flag  uintptr
}{
	"async":         {true, unix.MS_SYNCHRONOUS},
	"atime":         {true, unix.MS_NOATIME},
	"bind":          {false, unix.MS_BIND},
	"defaults":      {},
	"dev":           {true, unix.MS_NODEV},
	"diratime":      {true, unix.MS_NODIRATIME},
	"dirsync":       {false, unix.MS_DIRSYNC},
	"exec":          {true, unix.MS_NOEXEC},
	"iversion":      {false, unix.MS_I_VERSION},
	"lazytime":      {false, unix.MS_LAZYTIME},
	"loud":          {true, unix.MS_SILENT},
	"mand":          {false, unix.MS_MANDLOCK},
	"noatime":       {false, unix.MS_NOATIME},
	"nodev":         {false, unix.MS_NODEV},
	"nodiratime":    {false, unix.MS_NODIRATIME},
	"noexec":        {false, unix.MS_NOEXEC},
	"noiversion":    {true, unix.MS_I_VERSION},
	"nolazytime":    {true, unix.MS_LAZYTIME},
	"nomand":        {true, unix.MS_MANDLOCK},
	"norelatime":    {true, unix.MS_RELATIME},
	"nostrictatime": {true, unix.MS_STRICTATIME},
	"nosuid":        {false, unix.MS_NOSUID},
	"nosymfollow":   {false, unix.MS_NOSYMFOLLOW},
	"rbind":         {false, unix.MS_BIND | unix.MS_REC},
	"relatime":      {false, unix.MS_RELATIME},
	"remount":       {false, unix.MS_REMOUNT},
	"ro":            {false, unix.MS_RDONLY},
	"rw":            {true, unix.MS_RDONLY},
	"silent":        {false, unix.MS_SILENT},
	"strictatime":   {false, unix.MS_STRICTATIME},
	"suid":          {true, unix.MS_NOSUID},
	"symfollow":     {true, unix.MS_NOSYMFOLLOW},
	"sync":          {false, unix.MS_SYNCHRONOUS},
}

var propagationOptions = map[string]uintptr{
	"private":     unix.MS_PRIVATE,
	"rprivate":    unix.MS_PRIVATE | unix.MS_REC,
	"shared":      unix.MS_SHARED,
	"rshared":     unix.MS_SHARED | unix.MS_REC,
	"slave":       unix.MS_SLAVE,
	"rslave":      unix.MS_SLAVE | unix.MS_REC,
	"unbindable":  unix.MS_UNBINDABLE,
	"runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// forPrograms are the words that mount(8) reads itself and never hands on; so are
// those that start with x- or X-.
var forPrograms = map[string]bool{
	"_netdev": true, "auto": true, "noauto": true, "user": true, "nouser": true, "users": true,
	"owner": true, "group": true, "nofail": true,
}

func parse(list []string) (options, error) {
	var o options
	var uid, gid string
	for _, w := range list {
		key, value, _ := strings.Cut(w, "=")
		if f, ok := flagOptions[w]; ok {
			if f.clear {
				o.flags &^= f.flag
			} else {
				o.flags |= f.flag
			}
		} else if p, ok := propagationOptions[w]; ok {
			o.propagation = append(o.propagation, p)
		} else if w == "loop" {
			o.loop = true
		} else if key == "uidmap" {
			uid = value
		} else if key == "gidmap" {
			gid = value
		} else if w != "" && !forPrograms[w] && key != "comment" && !strings.HasPrefix(w, "x-") && !strings.HasPrefix(w, "X-") {
			o.data = append(o.data, w)
		}
	}
	if (uid == "") != (gid == "") {
		return o, errs.New(errs.InvalidArgument, "uidmap and gidmap are given together or not at all")
	}
	if uid == "" {
		return o, nil
	}
	u, err := parseMap("uidmap", uid)
	if err != nil {
		return o, err
	}
	g, err := parseMap("gidmap", gid)
	o.ids = &idMaps{u, g}
	return o, err
}

// parseMap reads container:host:size, several joined by commas.
func parseMap(key, text string) ([]idRange, error) {
	var out []idRange
	for one := range strings.SplitSeq(text, ",") {
		var n [3]uint32
		parts := strings.Split(one, ":")
		ok := len(parts) == len(n)
		for i := 0; ok && i < len(n); i++ {
			v, err := strconv.ParseUint(parts[i], 10, 32)
			n[i], ok = uint32(v), err == nil
		}
		if !ok || n[2] == 0 || uint64(n[0])+uint64(n[2]) > 1<<32 || uint64(n[1])+uint64(n[2]) > 1<<32 {
			return nil, errs.New(errs.InvalidArgument, "%s=%s: want container:host:size", key, text)
		}
		out = append(out, idRange{n[0], n[1], n[2]})
	}
	return out, nil
}
