package userdb

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"
)

// maxLine is how many bytes a line may have; longer ones are passed over. A group
// of 100,000 members has less than 2 MiB.
const maxLine = 4 << 20

// lines calls fn for each line until fn returns false.
func lines(r io.Reader, fn func(string) bool) error {
	b := bufio.NewReaderSize(r, 64<<10)
	var line []byte
	for {
		part, err := b.ReadSlice('\n')
		if len(line) <= maxLine {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil && err != io.EOF {
			return err
		}
		if len(line) <= maxLine && !fn(strings.TrimRight(string(line), "\r\n")) || err == io.EOF {
			return nil
		}
		line = line[:0]
	}
}

// passwd is what we read of a line of passwd(5):
//
//	name:password:UID:GID:GECOS:directory:shell
type passwd struct {
	name, home string
	uid, gid   uint32
}

func parsePasswd(line string) (passwd, bool) {
	f := strings.Split(line, ":")
	if len(f) < 4 || f[0] == "" {
		return passwd{}, false
	}
	uid, ok1 := field(f[2])
	gid, ok2 := field(f[3])
	p := passwd{name: f[0], uid: uid, gid: gid}
	if len(f) > 5 {
		p.home = f[5]
	}
	return p, ok1 && ok2
}

// group is what we read of a line of group(5):
//
//	name:password:GID:user,user
type group struct {
	name    string
	gid     uint32
	members string
}

func parseGroup(line string) (group, bool) {
	f := strings.SplitN(line, ":", 4)
	if len(f) < 3 || f[0] == "" {
		return group{}, false
	}
	gid, ok := field(f[2])
	g := group{name: f[0], gid: gid}
	if len(f) > 3 {
		g.members = f[3]
	}
	return g, ok
}

func (g group) has(user string) bool {
	for m := range strings.SplitSeq(g.members, ",") {
		if strings.TrimSpace(m) == user {
			return true
		}
	}
	return false
}

// field reads an id of a file. Larger ones than MaxID would wrap somewhere.
func field(s string) (uint32, bool) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 32)
	return uint32(n), err == nil && n <= MaxID
}
