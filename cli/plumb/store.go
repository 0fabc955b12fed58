package plumb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/base/id"
	"github.com/berthd/berth/cli/client"
	"github.com/berthd/berth/cli/container"
	"github.com/berthd/berth/cli/session"
	"github.com/berthd/berth/cli/table"
)

type contentRow struct{ Digest, Size, Age, Labels string }

// receiveAll collects a stream's messages.
func receiveAll[M any](recv func() (M, error), put func(M)) error {
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		put(m)
	}
}

func (a *app) contentCommand() *cobra.Command {
	var l session.Listing
	ls := l.Add(&cobra.Command{Use: "ls", Short: "List blobs", Args: session.ExactArgs(0), Example: "  berth content ls"}, true)
	ls.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		s, err := c.Content().List(ctx, &contentapi.ListContentRequest{Filters: l.Filters})
		if err != nil {
			return err
		}
		var rows []contentRow
		err = receiveAll(s.Recv, func(r *contentapi.ListContentResponse) {
			for _, i := range r.GetInfo() {
				rows = append(rows, contentRow{i.GetDigest(), table.Size(i.GetSize()), table.Age(time.Since(i.GetCreatedAt().AsTime())), labelText(i.GetLabels())})
			}
		})
		if err != nil {
			return err
		}
		return session.Print(a.App, l, rows, func(r contentRow) string { return r.Digest }, "DIGEST", "SIZE", "AGE", "LABELS")
	})
	get := &cobra.Command{Use: "get DIGEST", Short: "Write a blob to stdout", Args: session.ExactArgs(1), Example: "  berth content get sha256:… | jq ."}
	get.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		return c.CopyBlob(ctx, a.Out, args[0])
	})
	var digest string
	var size int64
	ingest := &cobra.Command{Use: "ingest [REF]", Short: "Store stdin as a blob", Args: session.RangeArgs(0, 1), Example: "  berth content ingest --expected-digest sha256:… < blob"}
	ingest.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		ref := "cli-" + id.New(8)
		if len(args) == 1 {
			ref = args[0]
		}
		_, err := c.Ingest(ctx, ref, a.In, size, digest, nil)
		return err
	})
	ingest.Flags().StringVar(&digest, "expected-digest", "", "fail unless this is its `digest`")
	ingest.Flags().Int64Var(&size, "expected-size", -1, "fail unless it has so many `bytes`")
	active := &cobra.Command{Use: "active", Short: "List what is being stored now", Args: session.ExactArgs(0)}
	active.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := c.Content().ListStatuses(ctx, &contentapi.ListStatusesRequest{})
		if err != nil {
			return err
		}
		var rows []ingestRow
		for _, s := range r.GetStatuses() {
			rows = append(rows, ingestRow{s.GetRef(), table.Size(s.GetOffset()) + "/" + table.Size(s.GetTotal()), table.Age(time.Since(s.GetStartedAt().AsTime()))})
		}
		return table.Write(a.Out, rows, "", table.Columns("REF", "SIZE", "AGE"))
	})
	info := &cobra.Command{Use: "info DIGEST", Short: "Show a blob's size, times and labels", Args: session.ExactArgs(1)}
	info.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		r, err := c.Content().Info(ctx, &contentapi.InfoRequest{Digest: args[0]})
		if err != nil {
			return err
		}
		return a.JSON(r.GetInfo())
	})
	label := &cobra.Command{Use: "label DIGEST KEY=VALUE...", Short: "Set labels; an empty value removes one", Args: session.MinArgs(2)}
	label.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		labels, mask, err := labelPaths(args[1:])
		if err != nil {
			return err
		}
		_, err = c.Content().Update(ctx, &contentapi.UpdateRequest{Info: &contentapi.Info{Digest: args[0], Labels: labels}, UpdateMask: mask})
		return err
	})
	rm := &cobra.Command{Use: "rm DIGEST...", Short: "Remove blobs, also if images need them", Args: session.MinArgs(1), Aliases: []string{"delete", "remove"}}
	rm.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		return a.ForEach(args, func(ref string) error {
			_, err := c.Content().Delete(ctx, &contentapi.DeleteContentRequest{Digest: ref})
			return err
		})
	})
	return session.Noun("content", "Work with blobs", nil, ls, get, info, ingest, active, label, rm)
}

type ingestRow struct{ Ref, Size, Age string }

type snapshotRow struct{ Key, Parent, Kind string }

func (a *app) listSnapshots(ctx context.Context, c *client.Client, sn string, filters []string) ([]snapshotRow, error) {
	s, err := c.Snapshots().List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: sn, Filters: filters})
	if err != nil {
		return nil, err
	}
	var rows []snapshotRow
	err = receiveAll(s.Recv, func(r *snapshotsapi.ListSnapshotsResponse) {
		for _, i := range r.GetInfo() {
			kind := i.GetKind().String()
			rows = append(rows, snapshotRow{i.GetName(), i.GetParent(), kind[:1] + strings.ToLower(kind[1:])})
		}
	})
	sort.Slice(rows, func(i, j int) bool { return rows[i].Key < rows[j].Key })
	return rows, err
}

func (a *app) snapshotsCommand() *cobra.Command {
	var l session.Listing
	sn := new(string)
	ls := l.Add(&cobra.Command{Use: "ls", Short: "List snapshots", Args: session.ExactArgs(0), Example: "  berth snapshots ls"}, true)
	ls.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		rows, err := a.listSnapshots(ctx, c, *sn, l.Filters)
		if err != nil {
			return err
		}
		return session.Print(a.App, l, rows, func(r snapshotRow) string { return r.Key }, "KEY", "PARENT", "KIND")
	})
	tree := &cobra.Command{Use: "tree", Short: "Show snapshots below their parents", Args: session.ExactArgs(0), Example: "  berth snapshots tree"}
	tree.RunE = a.Connected(func(ctx context.Context, c *client.Client, _ []string) error {
		rows, err := a.listSnapshots(ctx, c, *sn, nil)
		if err != nil {
			return err
		}
		kids := map[string][]string{}
		for _, r := range rows {
			kids[r.Parent] = append(kids[r.Parent], r.Key)
		}
		var show func(parent, indent string)
		show = func(parent, indent string) {
			for _, k := range kids[parent] {
				fmt.Fprintln(a.Out, indent+k)
				show(k, indent+"  ")
			}
		}
		show("", "")
		return nil
	})
	usage := &cobra.Command{Use: "usage [KEY...]", Short: "Show how much snapshots take, without their parents", Args: session.MinArgs(0)}
	usage.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		if len(args) == 0 {
			rows, err := a.listSnapshots(ctx, c, *sn, nil)
			if err != nil {
				return err
			}
			for _, r := range rows {
				args = append(args, r.Key)
			}
		}
		var rows []usageRow
		for _, k := range args {
			u, err := c.Snapshots().Usage(ctx, &snapshotsapi.UsageRequest{Snapshotter: *sn, Key: k})
			if err != nil {
				return err
			}
			rows = append(rows, usageRow{k, table.Size(u.GetSize()), u.GetInodes()})
		}
		return table.Write(a.Out, rows, "", table.Columns("KEY", "SIZE", "INODES"))
	})
	info := &cobra.Command{Use: "info KEY", Short: "Show a snapshot's parent, kind and labels", Args: session.ExactArgs(1)}
	info.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		r, err := c.Snapshots().Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: *sn, Key: args[0]})
		if err != nil {
			return err
		}
		return a.JSON(r.GetInfo())
	})
	mounts := &cobra.Command{Use: "mounts TARGET KEY", Short: "Print the mount commands of an active snapshot", Args: session.ExactArgs(2)}
	mounts.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		r, err := c.Snapshots().Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: *sn, Key: args[1]})
		if err != nil {
			return err
		}
		for _, m := range r.GetMounts() {
			fmt.Fprintf(a.Out, "mount -t %s %s %s -o %s\n", m.GetType(), m.GetSource(), args[0], strings.Join(m.GetOptions(), ","))
		}
		return nil
	})
	rm := &cobra.Command{Use: "rm KEY...", Short: "Remove snapshots that have no children", Args: session.MinArgs(1), Aliases: []string{"delete", "remove"}}
	rm.RunE = a.Connected(func(ctx context.Context, c *client.Client, args []string) error {
		return a.ForEach(args, func(ref string) error {
			_, err := c.Snapshots().Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: *sn, Key: ref})
			return err
		})
	})
	cmd := session.Noun("snapshots", "Work with snapshots", []string{"snapshot"}, ls, tree, usage, info, mounts, rm)
	cmd.PersistentFlags().StringVar(sn, "snapshotter", container.DefaultSnapshotter, "`name` of the snapshotter")
	return cmd
}

type usageRow struct {
	Key, Size string
	Inodes    int64
}
