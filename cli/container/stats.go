package container

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/metrics"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/table"
)

// statRow is what one container uses.
type statRow struct {
	ID, Name, CPUPerc, MemUsage, MemPerc, NetIO, BlockIO, PIDs string
}

// sampled is a sample with what it belongs to.
type sampled struct {
	metrics.Sample
	row      containerRow
	at       time.Time
	rx, tx   uint64
	netKnown bool
}

func (a *app) statsCommand() *cobra.Command {
	var once, noTrunc bool
	var format string
	cmd := &cobra.Command{
		Use: "stats [flags] [CONTAINER...]", Short: "Show what running containers use",
		Long:    `Show CPU, memory, network and disk of the running containers, or of those named, every second until interrupted; with --no-stream once.`,
		Example: "  berth stats\n  berth stats --no-stream --format json web",
		Args:    session.MinArgs(0), ValidArgsFunction: a.completeContainers(true),
	}
	cmd.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		ids, err := namedIDs(ctx, c, args)
		if err != nil {
			return err
		}
		old, err := sample(ctx, c, ids)
		if err != nil {
			return err
		}
		for {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return nil
			}
			now, err := sample(ctx, c, ids)
			if err != nil {
				return err
			}
			if err := a.printStats(old, now, format, noTrunc, once); err != nil {
				return err
			}
			if once {
				return nil
			}
			old = now
		}
	})
	f := cmd.Flags()
	f.BoolVar(&once, "no-stream", false, "once only")
	f.BoolVar(&noTrunc, "no-trunc", false, "do not shorten ids")
	f.StringVar(&format, "format", "", "table, json or a Go `template`")
	return cmd
}

// namedIDs resolves names to ids; none means all.
func namedIDs(ctx context.Context, c *client.Client, refs []string) (map[string]bool, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	out := map[string]bool{}
	for _, r := range refs {
		k, err := Find(ctx, c, r)
		if err != nil {
			return nil, err
		}
		out[k.GetID()] = true
	}
	return out, nil
}

func sample(ctx context.Context, c *client.Client, ids map[string]bool) (map[string]sampled, error) {
	rows, err := List(ctx, c, ListOptions{NoTrunc: true})
	if err != nil {
		return nil, err
	}
	var filters []string
	for i := range ids {
		filters = append(filters, "id=="+strconv.Quote(i))
	}
	r, err := c.Tasks().Metrics(ctx, &tasksapi.MetricsRequest{Filters: filters})
	if err != nil {
		return nil, err
	}
	out := map[string]sampled{}
	for _, m := range r.GetMetrics() {
		for _, row := range rows {
			if row.ID != m.GetID() {
				continue
			}
			s := sampled{row: row, at: time.Now()}
			if s.Sample, err = metrics.Parse(m.GetData().GetTypeUrl(), m.GetData().GetValue()); err != nil {
				return nil, err
			}
			if row.Networks != "host" {
				s.rx, s.tx, s.netKnown = netBytes(row.Pid)
			}
			out[row.ID] = s
		}
	}
	return out, nil
}

// netBytes sums the interfaces of a process but the loopback (proc(5): net/dev).
func netBytes(pid uint32) (rx, tx uint64, ok bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return 0, 0, false
	}
	s := bufio.NewScanner(bytes.NewReader(data))
	for s.Scan() {
		name, counts, found := strings.Cut(s.Text(), ":")
		f := strings.Fields(counts)
		if !found || len(f) < 9 || strings.TrimSpace(name) == "lo" {
			continue
		}
		r, _ := strconv.ParseUint(f[0], 10, 64)
		t, _ := strconv.ParseUint(f[8], 10, 64)
		rx, tx = rx+r, tx+t
	}
	return rx, tx, true
}

// noLimit is where a memory limit means none: the kernel's highest for v1.
const noLimit = 1 << 60

func (a *app) printStats(old, now map[string]sampled, format string, noTrunc, once bool) error {
	total := MachineMemory()
	var rows []statRow
	for _, id := range session.Keys(now) {
		s := now[id]
		r := statRow{ID: id, Name: s.row.Names, CPUPerc: "--", NetIO: "--", PIDs: strconv.FormatUint(s.Pids, 10)}
		if !noTrunc {
			r.ID = client.ShortID(id)
		}
		if o, there := old[id]; there && s.CPU >= o.CPU {
			r.CPUPerc = fmt.Sprintf("%.2f%%", float64(s.CPU-o.CPU)/float64(s.at.Sub(o.at).Nanoseconds())*100)
		}
		limit := s.Limit
		if limit == 0 || limit > noLimit {
			limit = total
		}
		r.MemUsage = table.BinarySize(int64(s.Memory)) + " / " + table.BinarySize(int64(limit))
		r.MemPerc = "--"
		if limit > 0 {
			r.MemPerc = fmt.Sprintf("%.2f%%", float64(s.Memory)/float64(limit)*100)
		}
		if s.netKnown {
			r.NetIO = table.Size(int64(s.rx)) + " / " + table.Size(int64(s.tx))
		}
		r.BlockIO = table.Size(int64(s.ReadByte)) + " / " + table.Size(int64(s.WriteByte))
		rows = append(rows, r)
	}
	if !once && (format == "" || strings.HasPrefix(format, "table")) && a.OnTerminal() {
		fmt.Fprint(a.Out, "\x1b[H\x1b[2J")
	}
	return table.Write(a.Out, rows, format, table.Columns("CONTAINER ID=ID", "NAME", "CPU %=CPUPerc", "MEM USAGE / LIMIT=MemUsage", "MEM %=MemPerc", "NET I/O=NetIO", "BLOCK I/O=BlockIO", "PIDS=PIDs"))
}

// MachineMemory is this machine's memory in bytes, 0 if nobody knows.
func MachineMemory() uint64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return n << 10
		}
	}
	return 0
}

func (a *app) topCommand() *cobra.Command {
	return &cobra.Command{
		Use: "top CONTAINER", Short: "List the processes of a container", Example: "  berth top web",
		Args: session.ExactArgs(1), ValidArgsFunction: a.completeContainers(true),
		RunE: a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
			k, err := Find(ctx, c, args[0])
			if err != nil {
				return err
			}
			if _, err := running(ctx, c, k); err != nil {
				return err
			}
			r, err := c.Tasks().ListPids(ctx, &tasksapi.ListPidsRequest{ContainerID: k.GetID()})
			if err != nil {
				return err
			}
			var rows []processRow
			for _, p := range r.GetProcesses() {
				if row, ok := describeProcess(p.GetPid()); ok {
					rows = append(rows, row)
				}
			}
			if len(rows) == 0 {
				return errs.New(errs.Unavailable, "the processes of container %s cannot be seen from here", client.DisplayName(k))
			}
			return table.Write(a.Out, rows, "", table.Columns("PID", "PPID", "USER", "STARTED", "TIME", "RSS", "COMMAND"))
		}),
	}
}

// processRow is a process as top shows it.
type processRow struct{ Pid, Ppid, User, Started, Time, Rss, Command string }

// describeProcess reads proc(5); a process that has ended meanwhile is not ok.
func describeProcess(pid uint32) (r processRow, ok bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	status, err1 := os.ReadFile(dir + "status")
	stat, err2 := os.ReadFile(dir + "stat")
	line, err3 := os.ReadFile(dir + "cmdline")
	if err1 != nil || err2 != nil || err3 != nil {
		return r, false
	}
	r.Pid, r.Rss = strconv.FormatUint(uint64(pid), 10), "0B"
	name := ""
	for l := range strings.Lines(string(status)) {
		k, v, _ := strings.Cut(strings.TrimSpace(l), ":")
		f := strings.Fields(v)
		switch {
		case len(f) == 0:
		case k == "Name":
			name = f[0]
		case k == "PPid":
			r.Ppid = f[0]
		case k == "Uid":
			r.User = f[0]
		case k == "VmRSS":
			n, _ := strconv.ParseInt(f[0], 10, 64)
			r.Rss = table.BinarySize(n << 10)
		}
	}
	if t, ok := startTime(pid); ok {
		r.Started = t.Local().Format("15:04:05")
	}
	if f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(f) > 12 {
		user, _ := strconv.ParseInt(f[11], 10, 64)
		kernel, _ := strconv.ParseInt(f[12], 10, 64)
		r.Time = (time.Duration(user+kernel) * 10 * time.Millisecond).Round(10 * time.Millisecond).String()
	}
	r.Command = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
	if r.Command == "" {
		r.Command = "[" + name + "]"
	}
	return r, true
}
