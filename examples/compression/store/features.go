package main

import (
	"math"
	"strconv"
)

// featureNames are the fields of a request to the model, in order.
var featureNames = []string{"size", "entropy", "zeros", "text", "high", "same", "pairs", "repeats", "far"}

// features are what the model is told of a block. They take one pass.
type features [9]float64

// describe computes a block's features:
//
//	size     bytes
//	entropy  of single bytes, in bits
//	zeros    share of bytes that are 0
//	text     share of printable ASCII, tabs and line ends
//	high     share of bytes from 128 on
//	same     share of bytes that equal the one before
//	pairs    share of the 65,536 pairs of bytes that occur, of those that could in a block of this size
//	repeats  share of positions at which four bytes stand that stood earlier in the block, as far as a
//	         table of 16,384 places remembers
//	far      share of those that stood more than 32 KiB earlier, beyond deflate's window
func describe(block []byte) (f features) {
	if len(block) == 0 {
		return f
	}
	const bits = 14
	var (
		counts [256]int
		pairs  [1 << 16 / 64]uint64
		last   [1 << bits]int32 // 1 + where a group of four with this hash stood last
		same   int
		repeat int
		far    int
	)
	before := -1
	for i, b := range block {
		counts[b]++
		if before >= 0 {
			pair := uint(before)<<8 | uint(b)
			pairs[pair/64] |= 1 << (pair % 64)
			if before == int(b) {
				same++
			}
		}
		before = int(b)
		if i+4 > len(block) {
			continue
		}
		four := uint32(block[i]) | uint32(block[i+1])<<8 | uint32(block[i+2])<<16 | uint32(block[i+3])<<24
		slot := &last[four*2654435761>>(32-bits)]
		if at := int(*slot) - 1; at >= 0 && block[at] == block[i] && block[at+1] == block[i+1] && block[at+2] == block[i+2] && block[at+3] == block[i+3] {
			repeat++
			if i-at > 32<<10 {
				far++
			}
		}
		*slot = int32(i) + 1
	}
	n := float64(len(block))
	var entropy, text, high float64
	for b, count := range counts {
		if count == 0 {
			continue
		}
		p := float64(count) / n
		entropy -= p * math.Log2(p)
		switch {
		case b >= 128:
			high += p
		case b >= 32 && b < 127, b == '\n', b == '\t', b == '\r':
			text += p
		}
	}
	distinct := 0
	for _, word := range pairs {
		for ; word != 0; word &= word - 1 {
			distinct++
		}
	}
	return features{n, entropy, float64(counts[0]) / n, text, high, float64(same) / n,
		float64(distinct) / math.Min(n, 1<<16), float64(repeat) / n, float64(far) / n}
}

// String is the request to the model.
func (f features) String() string {
	out := make([]byte, 0, 80)
	for i, v := range f {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendFloat(out, v, 'g', 5, 64)
	}
	return string(out)
}
