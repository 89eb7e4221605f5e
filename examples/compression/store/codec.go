package main

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// codec compresses blocks. Its name is kept with each block, so a name never changes what it means.
type codec struct {
	name       string
	compress   func(block []byte) ([]byte, error)
	decompress func(packed []byte, size int) ([]byte, error) // size is the block's; the answer has so many bytes
}

// codecs in the order of the columns that measure writes.
var codecs = []codec{
	{"none",
		func(block []byte) ([]byte, error) { return block, nil },
		func(packed []byte, _ int) ([]byte, error) { return packed, nil }},
	zstandard("zstd-fast", zstd.SpeedFastest),
	zstandard("zstd-best", zstd.SpeedBestCompression),
	{"flate", deflate, inflate},
	{"xz", packXZ, unpackXZ},
}

func codecOf(name string) (codec, error) {
	for _, c := range codecs {
		if c.name == name {
			return c, nil
		}
	}
	return codec{}, fmt.Errorf("%.40q is not a codec", name)
}

func zstandard(name string, level zstd.EncoderLevel) codec {
	// One goroutine: what a block costs is measured, and blocks are not large. The options are good ones,
	// so New fails for none of them.
	encoder, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	decoder, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(4*blockSize))
	return codec{
		name,
		func(block []byte) ([]byte, error) {
			return encoder.EncodeAll(block, make([]byte, 0, len(block)/2+64)), nil
		},
		func(packed []byte, size int) ([]byte, error) { return decoder.DecodeAll(packed, make([]byte, 0, size)) },
	}
}

func deflate(block []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, 6)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(block); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func inflate(packed []byte, size int) ([]byte, error) {
	return readBlock(flate.NewReader(bytes.NewReader(packed)), size)
}

func packXZ(block []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := xz.WriterConfig{DictCap: blockSize, CheckSum: xz.CRC32}.NewWriter(&out)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(block); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func unpackXZ(packed []byte, size int) ([]byte, error) {
	r, err := xz.ReaderConfig{DictCap: blockSize}.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return readBlock(r, size)
}

// readBlock reads exactly size bytes, however many more there are.
func readBlock(r io.Reader, size int) ([]byte, error) {
	block := make([]byte, size)
	if _, err := io.ReadFull(r, block); err != nil {
		return nil, err
	}
	return block, nil
}
