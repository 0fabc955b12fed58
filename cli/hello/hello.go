// Package hello makes, byte by byte, an image that needs no registry: one static
// program that prints a text and ends. It reads and starts nothing.
package hello

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"path"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/base/errs"
)

// Name is what the image is called.
const Name = "berth.dev/hello:latest"

// maxText is the longest text, in bytes: the programs load its length as 16 bits.
const maxText = 4096

// Sizes of an ELF file's headers (elf(5)), and where the program is loaded.
const (
	elfHeader     = 64
	programHeader = 56
	loadAddress   = 0x400000
)

// machine is what differs between processors: the ELF number and the code, which
// calls write(1, text, n) and exit(0); the text follows it.
type machine struct {
	number uint16
	code   func(n uint32) []byte
}

var machines = map[string]machine{
	"amd64": {62, func(n uint32) []byte {
		b := []byte{0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0} // mov eax, 1 (write); mov edi, 1
		b = append(b, 0x48, 0x8d, 0x35, 16, 0, 0, 0)    // lea rsi, [rip+16]: behind the code
		b = append(b, 0xba)                             // mov edx, n
		b = binary.LittleEndian.AppendUint32(b, n)
		b = append(b, 0x0f, 0x05)                                // syscall
		return append(b, 0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 5) // mov eax, 60 (exit); xor edi, edi; syscall
	}},
	"arm64": {183, func(n uint32) []byte {
		var b []byte
		for _, w := range []uint32{
			0xd2800808, 0xd2800020, 0x100000c1, 0xd2800002 | n<<5, 0xd4000001, // x8=64 (write) x0=1 x1=pc+24 x2=n svc
			0xd2800ba8, 0xd2800000, 0xd4000001, // x8=93 (exit) x0=0 svc
		} {
			b = binary.LittleEndian.AppendUint32(b, w)
		}
		return b
	}},
}

// Program is an executable that prints the text.
func Program(arch, text string) ([]byte, error) {
	m, ok := machines[arch]
	if !ok {
		return nil, errs.New(errs.Unimplemented, "the built-in image has no program for %s; run an image of a registry instead", arch)
	}
	if len(text) > maxText {
		return nil, errs.New(errs.InvalidArgument, "a text of %d bytes, at most %d fit", len(text), maxText)
	}
	body := append(m.code(uint32(len(text))), text...)
	size := uint64(elfHeader + programHeader + len(body))
	le := binary.LittleEndian
	b := append([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, make([]byte, 9)...) // 64 bits, little-endian, version 1
	b = le.AppendUint16(b, 2)                                             // an executable
	b = le.AppendUint16(b, m.number)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, loadAddress+elfHeader+programHeader) // entry
	b = le.AppendUint64(b, elfHeader)                           // program headers
	b = le.AppendUint64(b, 0)                                   // no sections
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{elfHeader, programHeader, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // to be loaded
	b = le.AppendUint32(b, 5) // to be read and executed
	for _, v := range []uint64{0, loadAddress, loadAddress, size, size, 0x1000} {
		b = le.AppendUint64(b, v)
	}
	return append(b, body...), nil
}

// Archive is an OCI image layout as tar with the one image in it.
func Archive(arch, text string) ([]byte, error) {
	program, err := Program(arch, text)
	if err != nil {
		return nil, err
	}
	layer, err := pack([]file{{"hello", program, 0o755}})
	if err != nil {
		return nil, err
	}
	var files []file
	add := func(mediaType string, v any) (ocispec.Descriptor, error) {
		data, raw := v.([]byte)
		if !raw {
			if data, err = json.Marshal(v); err != nil {
				return ocispec.Descriptor{}, err
			}
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		files = append(files, file{path.Join("blobs", "sha256", d.Digest.Encoded()), data, 0o644})
		return d, nil
	}
	l, err := add(ocispec.MediaTypeImageLayer, layer)
	if err != nil {
		return nil, err
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}, Config: ocispec.ImageConfig{Cmd: []string{"/hello"}}}
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.Digest}}
	c, err := add(ocispec.MediaTypeImageConfig, config)
	if err != nil {
		return nil, err
	}
	m, err := add(ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: c, Layers: []ocispec.Descriptor{l}})
	if err != nil {
		return nil, err
	}
	m.Annotations = map[string]string{"io.containerd.image.name": Name}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{m}})
	if err != nil {
		return nil, err
	}
	layout := fmt.Sprintf(`{"imageLayoutVersion":%q}`, ocispec.ImageLayoutVersion)
	return pack(append(files, file{"oci-layout", []byte(layout), 0o644}, file{"index.json", index, 0o644}))
}

type file struct {
	name string
	data []byte
	mode int64
}

func pack(files []file) ([]byte, error) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.data)), Mode: f.mode, ModTime: time.Unix(0, 0)}); err != nil {
			return nil, err
		}
		if _, err := tw.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := tw.Close()
	return b.Bytes(), err
}
