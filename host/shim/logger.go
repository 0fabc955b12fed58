package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// loggerTime bounds the start of a logger.
const loggerTime = 10 * time.Second

// Logger starts berth-shim as a logger with its query and waits until it is ready. It
// lives apart from us. release lets it end when its FIFOs do: shim/logger.go.
func (l *Launcher) Logger(ctx context.Context, query string) (release func(), err error) {
	program, err := l.own()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, loggerTime)
	defer cancel()
	theirs, hold, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start logger: %w", err)
	}
	answer, said, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start logger: %w", err), theirs.Close(), hold.Close())
	}
	defer answer.Close()
	cmd := exec.CommandContext(ctx, program, "logger", query)
	cmd.Stdin, cmd.Stdout, cmd.Dir = theirs, said, "/"
	err = errors.Join(cmd.Run(), theirs.Close(), said.Close())
	if err == nil {
		stop := context.AfterFunc(ctx, func() { _ = answer.SetReadDeadline(time.Now()) })
		var text []byte
		text, err = io.ReadAll(io.LimitReader(answer, 64<<10))
		stop()
		if err == nil && len(text) > 0 {
			err = errors.New(excerpt(text))
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start logger: %w", err), hold.Close())
	}
	return func() { _ = hold.Close() }, nil
}
