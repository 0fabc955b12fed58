package shim

import (
	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/base/errs"
	"github.com/berthd/berth/base/spec"
)

// The options that runc and those like it take, as clients of the API send them.
const (
	runcOptions       = "containerd.runc.v1.Options"
	checkpointOptions = "containerd.runc.v1.CheckpointOptions"
)

// decodeOptions reads options into m if they are of its type.
func decodeOptions(a spec.Any, name string, m proto.Message) (bool, error) {
	any := &anypb.Any{TypeUrl: a.TypeURL, Value: a.Value}
	if string(any.MessageName()) != name && a.TypeURL != name {
		return false, nil
	}
	if err := proto.Unmarshal(a.Value, m); err != nil {
		return true, errs.New(errs.InvalidArgument, "read options %s: %v", name, err)
	}
	return true, nil
}

// RestoreDir is the directory of a CRIU image that runtime options name, or "".
func RestoreDir(runtime spec.Any) (string, error) {
	var o options.Options
	_, err := decodeOptions(runtime, runcOptions, &o)
	return o.GetCriuImagePath(), err
}

// CheckpointDir is the directory that options of a checkpoint name for the CRIU
// image, or "": then it becomes content.
func CheckpointDir(checkpoint spec.Any) (string, error) {
	if checkpoint.Empty() {
		return "", nil
	}
	var o options.CheckpointOptions
	known, err := decodeOptions(checkpoint, checkpointOptions, &o)
	if err == nil && !known {
		err = errs.New(errs.InvalidArgument, "options of a checkpoint: %q is not %s", checkpoint.TypeURL, checkpointOptions)
	}
	return o.GetImagePath(), err
}

// EncodeAny writes a payload with its type, as a checkpoint keeps a spec.
func EncodeAny(a spec.Any) ([]byte, error) {
	return proto.Marshal(&anypb.Any{TypeUrl: a.TypeURL, Value: a.Value})
}

// CheckpointChoices are how a checkpoint is to be made.
type CheckpointChoices struct {
	Dir, Work string // of CRIU's image, and of its log and statistics
	// OpenTCP, UnixSockets and FileLocks allow what would be lost without the other
	// side.
	OpenTCP, UnixSockets, FileLocks bool
}

// EncodeCheckpoint gives choices the form of options; the container goes on running.
func EncodeCheckpoint(c CheckpointChoices) (spec.Any, error) {
	value, err := proto.Marshal(&options.CheckpointOptions{
		ImagePath: c.Dir, WorkPath: c.Work, OpenTcp: c.OpenTCP, ExternalUnixSockets: c.UnixSockets, FileLocks: c.FileLocks,
	})
	return spec.Any{TypeURL: checkpointOptions, Value: value}, err
}
