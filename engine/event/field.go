package event

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/berthd/berth/base/filter"
)

// fields lets filters look at an envelope: namespace, topic and event.<field>.
// The payload is decoded only when a filter asks for it.
func (e Envelope) fields() filter.Fields {
	var body protoreflect.Message
	var tried bool
	return func(path []string) (string, bool) {
		switch path[0] {
		case "namespace":
			return e.Namespace, e.Namespace != ""
		case "topic":
			return e.Topic, e.Topic != ""
		case "event":
			if !tried {
				tried = true
				if m, err := e.Event.UnmarshalNew(); err == nil {
					body = m.ProtoReflect()
				}
			}
			if body == nil {
				return "", false
			}
			return field(body, path[1:])
		}
		return "", false
	}
}

// field walks a path of message fields and map keys.
func field(m protoreflect.Message, path []string) (string, bool) {
	if len(path) == 0 {
		return "", false
	}
	fd := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	if fd == nil {
		return "", false
	}
	v := m.Get(fd)
	switch {
	case fd.IsMap():
		got := v.Map().Get(protoreflect.ValueOfString(strings.Join(path[1:], ".")).MapKey())
		if !got.IsValid() {
			return "", false
		}
		return got.String(), true
	case fd.IsList():
		return "", false
	case fd.Message() != nil:
		if !v.Message().IsValid() {
			return "", false
		}
		return field(v.Message(), path[1:])
	}
	text := fmt.Sprint(v.Interface())
	return text, len(path) == 1 && text != ""
}
