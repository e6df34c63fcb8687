// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func drawRope(t *rapid.T, a *Arena, most int) (Rope, []byte) {
	var r Rope
	var want []byte
	for range rapid.IntRange(0, most).Draw(t, "pieces") {
		part := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "piece")
		want = append(want, part...)
		if rapid.Bool().Draw(t, "public") {
			r = append(r, Piece{Text: string(part)})
			continue
		}
		v, err := a.Make(len(part), func(b []byte) (int, error) { return copy(b, part), nil })
		if err != nil {
			t.Fatal(err)
		}
		r = append(r, Piece{Secret: v})
	}
	return r, want
}

func TestRopeWritesItsPieces(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	rapid.Check(t, func(t *rapid.T) {
		a := NewArena()
		defer a.Close()
		r, want := drawRope(t, a, 60)
		if r.Len() != len(want) {
			t.Fatalf("%d bytes, not %d", r.Len(), len(want))
		}
		if err := errors.Join(file.Truncate(0), seek(file)); err != nil {
			t.Fatal(err)
		}
		n, err := r.WriteTo(file)
		if err != nil || n != int64(len(want)) {
			t.Fatal(n, err)
		}
		got, err := os.ReadFile(file.Name())
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q, not %q (%v)", got, want, err)
		}
	})
}

func seek(f *os.File) error {
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// More pieces than writev(2) takes, through a pipe that takes a page at a time.
func TestRopeThroughASmallPipe(t *testing.T) {
	a := testArena(t)
	var want []byte
	var r Rope
	for i := range 3*maxIOV + 1 {
		part := bytes.Repeat([]byte{byte(i)}, i%61)
		want = append(want, part...)
		r = append(r, Piece{Text: string(part[:len(part)/2])}, Piece{Secret: testValue(t, a, string(part[len(part)/2:]))})
	}
	in, out, err := os.Pipe() // Go's pipes are non-blocking: EAGAIN happens
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	conn, err := out.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Control(func(fd uintptr) {
		if _, err := unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 4096); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := r.WriteTo(out)
		wrote <- errors.Join(err, out.Close())
	}()
	got, err := io.ReadAll(in)
	if err := errors.Join(err, <-wrote); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes came, not the %d that were sent", len(got), len(want))
	}
}

func TestRopeRefusals(t *testing.T) {
	a := testArena(t)
	v, gone := testValue(t, a, plain), testValue(t, a, plain)
	gone.Wipe()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, r := range map[string]Rope{
		"wiped": {{Text: "a"}, {Secret: v}, {Secret: gone}},
		"zero":  {{Text: "a"}, {Secret: &Value{}}},
		"both":  {{Text: "a"}, {Text: "b", Secret: v}},
	} {
		if n, err := r.WriteTo(file); err == nil || n != 0 {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	if info, err := file.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("%d bytes were written (%v)", info.Size(), err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if _, err := (Rope{{Secret: v}}).WriteTo(full); !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
	if v.s.pins != 0 {
		t.Error("a value stays pinned")
	}
}
