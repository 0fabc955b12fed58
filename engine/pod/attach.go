package pod

import (
	"context"

	"github.com/berthd/berth/engine/task"
)

// Attach joins the streams of a running container until it ends, ctx ends, or a stream
// fails. The container does not notice.
func (p *Pods) Attach(ctx context.Context, ns, id string, a task.Attachment) error {
	id, err := p.Running(ns, id)
	if err != nil {
		return err
	}
	return p.tasks.Attach(ctx, p.scope(ns), id, a)
}
