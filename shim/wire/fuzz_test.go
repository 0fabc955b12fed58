package wire

import (
	"reflect"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// decoders are all that a shim reads of what others have sent.
func decoders() []Decoder {
	return []Decoder{
		&BootstrapParams{}, &Options{}, &CheckpointOptions{}, &Request{}, &Response{}, &Status{}, &Any{}, &CreateTask{}, &Process{},
		&Exec{}, &ResizePty{}, &Kill{}, &CloseIO{}, &Checkpoint{}, &Update{}, &Shutdown{},
	}
}

// What is no message is an error, never a panic, and never takes more memory than it
// has bytes.
func FuzzDecode(f *testing.F) {
	exec, err := proto.Marshal(&task.ExecProcessRequest{ID: "c", ExecID: "e", Terminal: true, Stdout: "/out", Spec: &anypb.Any{TypeUrl: "t", Value: []byte("{}")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(exec)
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, d := range decoders() {
			if d.Decode(data) != nil {
				continue
			}
			again := reflect.New(reflect.TypeOf(d).Elem()).Interface().(Decoder)
			m, ok := d.(Message)
			if !ok {
				continue
			}
			if err := again.Decode(m.Append(nil)); err != nil {
				t.Errorf("%T: what it wrote itself: %v", d, err)
			}
		}
	})
}

// What the generated code of everybody else writes is read as it was meant.
func FuzzExec(f *testing.F) {
	f.Add("c", "e", true, "pass:///x", "type", []byte("{}"))
	f.Fuzz(func(t *testing.T, id, exec string, tty bool, out, typ string, spec []byte) {
		data, err := proto.Marshal(&task.ExecProcessRequest{ID: id, ExecID: exec, Terminal: tty, Stdin: out, Stdout: out, Stderr: out, Spec: &anypb.Any{TypeUrl: typ, Value: spec}})
		if err != nil {
			return // not UTF-8: nobody can send it
		}
		var got Exec
		if err := got.Decode(data); err != nil {
			t.Fatal(err)
		}
		if got.ID != id || got.ExecID != exec || got.Stdio.Terminal != tty || got.Stdio.Stdin != out || got.Stdio.Stdout != out || got.Stdio.Stderr != out ||
			got.Spec.TypeURL != typ || string(got.Spec.Value) != string(spec) {
			t.Errorf("got %+v", got)
		}
	})
}
