// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"go.yaml.in/yaml/v4"
)

const plain = "correct horse battery staple"

func testValue(t *testing.T, a *Arena, text string) *Value {
	t.Helper()
	v, err := a.Make(len(text), func(b []byte) (int, error) { return copy(b, text), nil })
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func testArena(t *testing.T) *Arena {
	t.Helper()
	a := NewArena()
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

type holder struct {
	Name    string
	Pointer *Value
	Plain   Value
	hidden  *Value
	inside  Value
	key     *Key
	Rope    Rope
}

func TestValueCannotBePrinted(t *testing.T) {
	a := testArena(t)
	v := testValue(t, a, plain)
	key, err := KeyFrom([]byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	h := holder{"x", v, *v, v, *v, key, Rope{{Secret: v}}}
	bare := fmt.Sprintf("%x", plain)
	for _, verb := range strings.Split("v +v #v s q x X d b o c U t e f g T p w y 10s .3s", " ") {
		for _, arg := range []any{v, *v, h, &h, []*Value{v}, []Value{*v}, map[string]*Value{"a": v}, h.Rope, key} {
			got := fmt.Sprintf("%"+verb, arg)
			if strings.Contains(got, plain[:5]) || strings.Contains(strings.ToLower(got), bare[:10]) ||
				strings.Contains(got, fmt.Sprint([]byte(plain[:5]))[1:15]) {
				t.Errorf("%%%s of %T: %s", verb, arg, got)
			}
		}
	}
	if got := fmt.Sprint(v); got != "secret(28 bytes)" {
		t.Error(got)
	}
	if got := fmt.Sprintf("%s", *v); got != "secret(28 bytes)" { //nolint:gosimple // the verb is the point
		t.Error(got)
	}
	v.Wipe()
	if got := v.String(); got != "secret(wiped)" {
		t.Error(got)
	}
}

func TestValueCannotBeLogged(t *testing.T) {
	v := testValue(t, testArena(t), plain)
	var text, js bytes.Buffer
	for _, log := range []*slog.Logger{slog.New(slog.NewTextHandler(&text, nil)), slog.New(slog.NewJSONHandler(&js, nil))} {
		log.Info("start", "value", v, "copy", *v, "inside", holder{Pointer: v}, "group", slog.GroupValue(slog.Any("v", v)))
	}
	for _, out := range []string{text.String(), js.String()} {
		if strings.Contains(out, plain[:5]) {
			t.Error(out)
		}
		if !strings.Contains(out, "secret(28 bytes)") {
			t.Error(out)
		}
	}
}

func TestValueCannotBeMarshalled(t *testing.T) {
	v := testValue(t, testArena(t), plain)
	type box struct{ V *Value }
	type copied struct{ V Value }
	for name, marshal := range map[string]func(any) ([]byte, error){
		"json": json.Marshal,
		"xml":  xml.Marshal,
		"yaml": yaml.Marshal,
		"gob": func(x any) ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(x)
			return b.Bytes(), err
		},
	} {
		for _, x := range []any{v, *v, box{v}, copied{*v}} {
			if out, err := marshal(x); err == nil || bytes.Contains(out, []byte(plain[:5])) {
				t.Errorf("%s of %T: %q, %v", name, x, out, err)
			}
		}
	}
	if _, err := json.Marshal(map[*Value]int{v: 1}); err == nil {
		t.Error("a value became a JSON key")
	}
	if _, err := v.MarshalBinary(); !errors.Is(err, ErrUnprintable) {
		t.Error(err)
	}
}

func TestValueIsNotComparable(t *testing.T) {
	for _, typ := range []reflect.Type{reflect.TypeOf(Value{}), reflect.TypeOf(&Key{}).Elem(), reflect.TypeOf(holder{})} {
		if typ.Comparable() {
			t.Errorf("%v can be compared with ==", typ)
		}
	}
	if !reflect.TypeOf(Digest{}).Comparable() {
		t.Error("digests cannot be compared")
	}
}

// Printers as spew or go-cmp walk through every field and pointer by reflection.
func TestReflectionFindsNoBytes(t *testing.T) {
	a := testArena(t)
	key, err := KeyFrom([]byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	w := walker{seen: map[unsafe.Pointer]bool{}}
	w.walk(reflect.ValueOf(&holder{Pointer: testValue(t, a, plain), key: key}))
	if w.found || w.steps < 20 {
		t.Errorf("found %v after %d steps", w.found, w.steps)
	}
	w.walk(reflect.ValueOf(&struct{ b []byte }{[]byte(plain)}))
	if !w.found {
		t.Error("the walker does not find a plain slice")
	}
}

type walker struct {
	seen  map[unsafe.Pointer]bool
	steps int
	found bool
}

func (w *walker) walk(v reflect.Value) {
	w.steps++
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && !w.seen[v.UnsafePointer()] {
			w.seen[v.UnsafePointer()] = true
			w.walk(v.Elem())
		}
	case reflect.Interface:
		if !v.IsNil() {
			w.walk(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			w.walk(v.Field(i))
		}
	case reflect.String:
		w.found = w.found || strings.Contains(v.String(), plain[:8])
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
			w.found = w.found || bytes.Contains(v.Bytes(), []byte(plain[:8]))
			return
		}
		for i := range v.Len() {
			w.walk(v.Index(i))
		}
	}
}

func TestEqual(t *testing.T) {
	a, b := testArena(t), testArena(t)
	v := testValue(t, a, plain)
	for text, want := range map[string]bool{plain: true, plain + "x": false, plain[1:]: false, "": false} {
		if o := testValue(t, b, text); v.Equal(o) != want || o.Equal(v) != want {
			t.Errorf("%q: not %v", text, want)
		}
	}
	if !v.Equal(v) {
		t.Error("a value is not equal to itself")
	}
	w := testValue(t, a, plain)
	w.Wipe()
	var zero Value
	if v.Equal(w) || w.Equal(w) || v.Equal(nil) || zero.Equal(&zero) {
		t.Error("a wiped value equals something")
	}
}

func TestWiped(t *testing.T) {
	own, err := Make(3, func(b []byte) (int, error) { return copy(b, "abc"), nil })
	if err != nil {
		t.Fatal(err)
	}
	closed := NewArena()
	gone := testValue(t, closed, plain)
	if err := errors.Join(closed.Close(), closed.Close()); err != nil {
		t.Fatal(err)
	}
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []*Value{own, gone, nil, {}} {
		v.Wipe()
		v.Wipe()
		if err := v.Use(func([]byte) error { t.Error("used"); return nil }); !errors.Is(err, ErrWiped) {
			t.Error(err)
		}
		if v.Len() != 0 || !v.Digest(key, "").IsZero() {
			t.Error("a wiped value has a length or a digest")
		}
		if _, err := closed.Base64(v); !errors.Is(err, ErrWiped) {
			t.Error(err)
		}
	}
	if _, err := closed.Make(1, nil); !errors.Is(err, ErrWiped) {
		t.Error(err)
	}
	if closed.Kind() != "" {
		t.Error(closed.Kind())
	}
}
