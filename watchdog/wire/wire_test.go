package wire

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func TestFramesComeBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type frame struct {
			h       Header
			payload []byte
		}
		var frames []frame
		var stream []byte
		for range rapid.IntRange(0, 8).Draw(t, "frames") {
			payload := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "payload")
			h := Header{
				Length: uint32(len(payload)), Kind: Kind(rapid.Byte().Draw(t, "kind")), Flags: rapid.Byte().Draw(t, "flags"),
				ID: rapid.Uint64().Draw(t, "id"), Elapsed: rapid.Uint64().Draw(t, "elapsed"),
			}
			frames = append(frames, frame{h, payload})
			stream = append(AppendHeader(stream, h), payload...)
			for n := len(payload); h.Flags&FlagPadded != 0 && n%4 != 0; n++ {
				stream = append(stream, rapid.Byte().Draw(t, "padding"))
			}
		}
		cut := rapid.IntRange(0, len(stream)).Draw(t, "cut")
		rest, whole := stream[:cut], 0
		for {
			h, payload, after, need, ok, err := Next(rest)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				if need <= len(rest) {
					t.Fatalf("needs %d bytes and has %d", need, len(rest))
				}
				break
			}
			if h != frames[whole].h || !bytes.Equal(payload, frames[whole].payload) {
				t.Fatalf("frame %d is %+v %x", whole, h, payload)
			}
			rest = after
			whole++
		}
		if cut == len(stream) && (whole != len(frames) || len(rest) != 0) {
			t.Fatalf("%d of %d frames came back, %d bytes are left", whole, len(frames), len(rest))
		}
	})
}

func TestTheHeaderIsWhatTheProtocolSays(t *testing.T) {
	got := AppendHeader(nil, Header{Length: 0x01020304, Kind: Response, Flags: FlagMore, ID: 0x1112131415161718, Elapsed: 5})
	want := []byte{4, 3, 2, 1, 49, 1, 0, 0, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 5, 0, 0, 0, 0, 0, 0, 0}
	if !bytes.Equal(got, want) || len(got) != HeaderSize {
		t.Errorf("header is %x", got)
	}
}

func TestARunHasTheRequestsThatItIsMadeOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var frames, heads, payloads []byte
		count := rapid.IntRange(0, 5).Draw(t, "requests")
		for range count {
			payload := rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "payload")
			head := AppendHeader(nil, Header{
				Length: uint32(len(payload)), Kind: Request, Flags: rapid.ByteRange(0, FlagMore|FlagHold).Draw(t, "flags"),
				ID: rapid.Uint64().Draw(t, "id"),
			})
			frames = append(append(frames, head...), payload...)
			heads, payloads = append(heads, head...), append(payloads, payload...)
		}
		before := []byte("before")
		cut := frames[:rapid.IntRange(0, len(frames)).Draw(t, "cut")]
		if run, ok := AppendRun(before, cut); !ok && !bytes.Equal(run, before) || ok && len(cut) < len(frames) && !wholeFrames(cut) {
			t.Fatalf("%x of %x gave %v %x", cut, frames, ok, run)
		}
		run, ok := AppendRun(before, frames)
		if ok != (count >= 2) {
			t.Fatalf("%d requests gave %v", count, ok)
		}
		if !ok {
			return
		}
		h, payload, rest, _, ok, err := Next(run[len(before):])
		if err != nil || !ok || len(rest) > 0 || h.Kind != Run || h.Elapsed != uint64(count) ||
			!bytes.Equal(payload, append(heads, payloads...)) || !bytes.HasPrefix(run, before) {
			t.Fatalf("%x became %x", frames, run)
		}
	})
}

// wholeFrames reports whether nothing of the last frame is missing.
func wholeFrames(b []byte) bool {
	for len(b) > 0 {
		_, _, rest, _, ok, err := Next(b)
		if err != nil || !ok {
			return false
		}
		b = rest
	}
	return true
}

func TestOnlyRequestsBecomeARun(t *testing.T) {
	one := AppendHeader(nil, Header{Kind: Request, ID: 1})
	if run, ok := AppendRun(nil, append(one, AppendHeader(nil, Header{Kind: Kill, ID: 2})...)); ok {
		t.Errorf("a frame of another kind became %x", run)
	}
}

func TestABrokenFrameIsRefusedBeforeItIsAwaited(t *testing.T) {
	if _, _, _, _, _, err := Next(AppendHeader(nil, Header{Length: MaxPayload + 1})); err == nil {
		t.Error("a frame over the limit is taken")
	}
	if _, _, _, need, ok, err := Next(AppendHeader(nil, Header{Length: MaxPayload})); err != nil || ok || need != HeaderSize+MaxPayload {
		t.Errorf("a frame at the limit: need %d, %v", need, err)
	}
	text := []byte("Traceback (most recent call last): something printed into the channel")
	if _, _, _, _, _, err := Next(text); err == nil {
		t.Error("text is taken for a frame")
	}
}

func FuzzNext(f *testing.F) {
	f.Add([]byte{})
	f.Add(AppendHeader(nil, Header{Kind: Ready}))
	f.Add(append(AppendHeader(nil, Header{Length: 3, Kind: Response, ID: 7}), "abcdef"...))
	f.Fuzz(func(t *testing.T, in []byte) {
		h, payload, rest, need, ok, err := Next(in)
		switch {
		case err != nil && ok:
			t.Fatal("a frame and an error")
		case ok:
			if again := append(append(AppendHeader(nil, h), payload...), rest...); !bytes.Equal(again, in) {
				t.Fatalf("%x became %x", in, again)
			}
		case err == nil && need <= len(in):
			t.Fatalf("needs %d of %d bytes", need, len(in))
		}
	})
}
