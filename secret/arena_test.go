// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func content(t interface {
	Helper()
	Fatal(...any)
}, v *Value,
) []byte {
	t.Helper()
	var out []byte
	if err := v.Use(func(b []byte) error { out = bytes.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestReadLimits(t *testing.T) {
	a := testArena(t)
	dir := t.TempDir()
	for _, n := range []int{0, 1, 4095, 4096, 4097, 70000, 1 << 20} {
		data := bytes.Repeat([]byte("0123456789abcdef!"), n/17+1)[:n]
		path := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		file := func() io.Reader {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		}
		for name, open := range map[string]func() io.Reader{
			"file":  file,
			"bytes": func() io.Reader { return bytes.NewReader(data) },
			"ends with the data": func() io.Reader {
				return iotest.DataErrReader(bytes.NewReader(data))
			},
			"halves": func() io.Reader { return iotest.HalfReader(bytes.NewReader(data)) },
			"pipe":   func() io.Reader { return pipeOf(t, data) },
		} {
			v, err := a.Read(open(), n)
			if err != nil {
				t.Fatalf("%s of %d bytes: %v", name, n, err)
			}
			if !bytes.Equal(content(t, v), data) || v.Len() != n {
				t.Errorf("%s of %d bytes came as %d others", name, n, v.Len())
			}
			v.Wipe()
			if n == 0 {
				continue
			}
			var large *TooLargeError
			if v, err := a.Read(open(), n-1); !errors.As(err, &large) || large.Max != n-1 || v != nil {
				t.Errorf("%s of %d bytes, limit %d: %v, %v", name, n, n-1, v, err)
			}
		}
	}
	if len(a.maps) != 1 || a.maps[0].used != 0 || a.maps[0].pins != 0 {
		t.Errorf("%d mappings stay, %d bytes in use", len(a.maps), a.maps[0].used)
	}
}

func pipeOf(t *testing.T, data []byte) *os.File {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	go func() {
		_, _ = w.Write(data) // a reader with a lower limit goes away before the end
		w.Close()
	}()
	return r
}

type badReader struct{ n int }

func (r badReader) Read([]byte) (int, error) { return r.n, nil }

func TestReadFailures(t *testing.T) {
	a := testArena(t)
	broken := errors.New("broken")
	for name, r := range map[string]io.Reader{
		"error after data": io.MultiReader(strings.NewReader(plain), iotest.ErrReader(broken)),
		"never anything":   badReader{0},
		"too much":         badReader{1 << 20},
		"negative":         badReader{-1},
		"a directory":      must(os.Open(t.TempDir())),
	} {
		if v, err := a.Read(r, 1000); err == nil || v != nil {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	if _, err := a.Read(strings.NewReader(""), -1); err == nil {
		t.Error("a negative limit")
	}
	for _, n := range []int{-1, 4} {
		if v, err := a.Make(3, func([]byte) (int, error) { return n, nil }); err == nil {
			t.Errorf("%d bytes written into 3: %v", n, v)
		}
	}
	if _, err := a.Make(-1, nil); err == nil {
		t.Error("a negative length")
	}
	if v, err := Make(3, func([]byte) (int, error) { return 0, broken }); !errors.Is(err, broken) || v != nil {
		t.Error(v, err)
	}
	if a.maps[0].used != 0 {
		t.Errorf("%d bytes stay", a.maps[0].used)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// What happens to one value must never change another.
func TestArenaKeepsValuesApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := NewArena()
		defer a.Close()
		type pair struct {
			v    *Value
			want []byte
		}
		var all []pair
		t.Repeat(map[string]func(*rapid.T){
			"make": func(t *rapid.T) {
				want := rapid.SliceOfN(rapid.Byte(), 0, 9000).Draw(t, "value")
				spare := rapid.IntRange(0, 40).Draw(t, "spare")
				v, err := a.Make(len(want)+spare, func(b []byte) (int, error) {
					for i := range b {
						b[i] = 0xee
					}
					return copy(b, want), nil
				})
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, pair{v, want})
			},
			"read": func(t *rapid.T) {
				want := rapid.SliceOfN(rapid.Byte(), 0, 30000).Draw(t, "value")
				v, err := a.Read(bytes.NewReader(want), len(want))
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, pair{v, want})
			},
			"base64": func(t *rapid.T) {
				if len(all) == 0 {
					t.Skip("SKIPPED: needs a value that was made before")
				}
				p := rapid.SampledFrom(all).Draw(t, "value")
				v, err := a.Base64(p.v)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, pair{v, []byte(base64.StdEncoding.EncodeToString(p.want))})
			},
			"wipe": func(t *rapid.T) {
				if len(all) == 0 {
					t.Skip("SKIPPED: needs a value that was made before")
				}
				i := rapid.IntRange(0, len(all)-1).Draw(t, "which")
				s := all[i].v.s
				mem := s.m.mem()[s.off : s.off+s.n]
				stays := len(a.maps) == 1
				all[i].v.Wipe()
				if stays && bytes.ContainsFunc(mem, func(r rune) bool { return r != 0 }) {
					t.Fatal("wiped bytes stay")
				}
				all = append(all[:i], all[i+1:]...)
			},
			"": func(t *rapid.T) {
				for _, p := range all {
					if !bytes.Equal(content(t, p.v), p.want) {
						t.Fatal("a value changed")
					}
				}
			},
		})
	})
}

func TestUseWhileWiping(t *testing.T) {
	a := NewArena()
	var all sync.WaitGroup
	for i := range 16 {
		v := testValue(t, a, strings.Repeat(string(rune('a'+i)), 100))
		all.Go(func() {
			for range 200 {
				err := v.Use(func(b []byte) error {
					for _, c := range b {
						if c != byte('a'+i) {
							return fmt.Errorf("%c in value %d", c, i)
						}
					}
					return nil
				})
				if err != nil && !errors.Is(err, ErrWiped) {
					t.Error(err)
				}
			}
		})
		if i%2 == 0 {
			all.Go(v.Wipe)
		}
	}
	all.Go(func() { _ = a.Close() })
	all.Wait()
}

func TestCloseInsideUse(t *testing.T) {
	a := NewArena()
	v := testValue(t, a, plain)
	m := v.s.m
	err := v.Use(func(b []byte) error {
		if err := a.Close(); err != nil {
			return err
		}
		v.Wipe()
		if string(b) != plain {
			t.Error("wiped under its user")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if m.mem() != nil {
		t.Error("the pages stay after the last user")
	}
}
