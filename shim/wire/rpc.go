package wire

import "strings"

// Request is ttrpc.Request.
type Request struct {
	Service     string
	Method      string
	Payload     []byte
	TimeoutNano int64 // 0 is no limit
	Metadata    []Pair
}

// Pair is ttrpc.KeyValue.
type Pair struct{ Key, Value string }

// Append writes r behind b.
func (r *Request) Append(b []byte) []byte {
	b = putText(b, 1, r.Service)
	b = putText(b, 2, r.Method)
	b = putBytes(b, 3, r.Payload)
	b = putInt(b, 4, r.TimeoutNano)
	for _, p := range r.Metadata {
		b = putNested(b, 5, func(b []byte) []byte { return putText(putText(b, 1, p.Key), 2, p.Value) })
	}
	return b
}

// Decode reads r from b; the payload points into b.
func (r *Request) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&r.Service)
		case 2:
			return f.text(&r.Method)
		case 3:
			return f.bytes(&r.Payload)
		case 4:
			return f.int64(&r.TimeoutNano)
		case 5:
			var p Pair
			err := f.message(&p)
			r.Metadata = append(r.Metadata, p)
			return err
		}
		return nil
	})
}

// Decode reads p from b.
func (p *Pair) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.text(&p.Key)
		case 2:
			return f.text(&p.Value)
		}
		return nil
	})
}

// Status is google.rpc.Status without details: nobody who calls a shim reads them.
type Status struct {
	Code    int32 // google.rpc.Code; 0 is OK
	Message string
}

// Response is ttrpc.Response.
type Response struct {
	Status  Status
	Payload []byte
}

// Append writes r behind b. Bytes of the message that are not UTF-8 are replaced:
// the other side would refuse the whole answer.
func (r *Response) Append(b []byte) []byte {
	if r.Status.Code != 0 {
		b = putNested(b, 1, func(b []byte) []byte {
			return putText(putInt(b, 1, int64(r.Status.Code)), 2, strings.ToValidUTF8(r.Status.Message, "\uFFFD"))
		})
	}
	return putBytes(b, 2, r.Payload)
}

// Decode reads r from b; the payload points into b.
func (r *Response) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.message(&r.Status)
		case 2:
			return f.bytes(&r.Payload)
		}
		return nil
	})
}

// Decode reads s from b.
func (s *Status) Decode(b []byte) error {
	return fields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.int32(&s.Code)
		case 2:
			return f.text(&s.Message)
		}
		return nil
	})
}
