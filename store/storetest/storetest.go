// SPDX-License-Identifier: Apache-2.0

// Package storetest is the one suite that every store passes.
package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
)

// Run tests the stores that open opens: each call opens the same one again, as another
// process would; where is a name for a store of its own.
func Run(t *testing.T, open func(t *testing.T, where string) store.Store) {
	for name, test := range map[string]func(*testing.T, func() store.Store){
		"round trip": roundTrip, "a snapshot stays": stays, "conflicts": conflicts, "not found": notFound,
		"versions": versions, "rotation": rotation, "several writers": writers,
	} {
		t.Run(name, func(t *testing.T) {
			where := strings.ReplaceAll(name, " ", "-")
			test(t, func() store.Store { return open(t, where) })
		})
	}
}

func arena(t *testing.T) *secret.Arena {
	t.Helper()
	a := secret.NewArena()
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// put replaces a generator, whatever is there.
func put(t *testing.T, s store.Store, name string, base store.Version, files map[string]string) store.Version {
	t.Helper()
	v, err := tryPut(t, s, name, base, files)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func tryPut(t *testing.T, s store.Store, name string, base store.Version, files map[string]string) (store.Version, error) {
	t.Helper()
	a := secret.NewArena()
	defer a.Close()
	var all []store.File
	for n, text := range files {
		v, err := a.Read(strings.NewReader(text), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, store.File{Name: n, Value: v})
	}
	return s.Put(t.Context(), store.Ref{Generator: name}, base, all)
}

func get(t *testing.T, s store.Snapshot, name, file string) string {
	t.Helper()
	a := secret.NewArena()
	defer a.Close()
	v, err := s.Open(t.Context(), a, store.Ref{Generator: name}, file)
	if err != nil {
		t.Fatal(err)
	}
	var text string
	if err := v.Use(func(b []byte) error { text = string(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return text
}

func pin(t *testing.T, s store.Store, names ...string) store.Snapshot {
	t.Helper()
	var refs []store.Ref
	for _, n := range names {
		refs = append(refs, store.Ref{Generator: n})
	}
	snap, err := s.Pin(t.Context(), refs...)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func roundTrip(t *testing.T, open func() store.Store) {
	r := rand.New(rand.NewPCG(1, 2))
	const letters = "abcXYZ019._-"
	want := map[string]map[string]string{"limits": {"empty": "", "largest": strings.Repeat("\x00", 1<<20)}}
	for range 20 {
		files := map[string]string{}
		for range r.IntN(6) {
			name := []byte("f")
			for range r.IntN(30) {
				name = append(name, letters[r.IntN(len(letters))])
			}
			value := make([]byte, r.IntN(5000))
			for i := range value {
				value[i] = byte(r.Uint32())
			}
			files[string(name)] = string(value)
		}
		want[fmt.Sprintf("g%x", r.Uint64())] = files
	}
	for name, files := range want {
		put(t, open(), name, "", files)
	}
	seen := 0
	for m, err := range open().List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		seen++
		files := want[m.Ref.Generator]
		if len(m.Files) != len(files) || m.Version == "" {
			t.Errorf("%s has %d files, want %d", m.Ref.Generator, len(m.Files), len(files))
		}
		for _, f := range m.Files {
			if text, ok := files[f.Name]; !ok || int64(len(text)) != f.Bytes {
				t.Errorf("%s/%s has %d bytes", m.Ref.Generator, f.Name, f.Bytes)
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d generators are listed, want %d", seen, len(want))
	}
	for name, files := range want {
		s := pin(t, open(), name)
		for f, text := range files {
			if got := get(t, s, name, f); got != text {
				t.Errorf("%s/%s: %d bytes, want %d", name, f, len(got), len(text))
			}
		}
		_ = s.Close()
	}
}

func stays(t *testing.T, open func() store.Store) {
	s := open()
	v := put(t, s, "g", "", map[string]string{"a": "1", "b": "1"})
	old := pin(t, s, "g")
	defer old.Close()
	v2 := put(t, open(), "g", v, map[string]string{"a": "2"})
	if got := get(t, old, "g", "a") + get(t, old, "g", "b"); got != "11" || old.Version(store.Ref{Generator: "g"}) != v {
		t.Errorf("the snapshot has %q of version %s", got, old.Version(store.Ref{Generator: "g"}))
	}
	now := pin(t, s, "g")
	defer now.Close()
	var none *store.NotFoundError
	if _, err := now.Open(t.Context(), arena(t), store.Ref{Generator: "g"}, "b"); !errors.As(err, &none) || none.File != "b" {
		t.Errorf("a file that was not put again: %v", err)
	}
	if got := get(t, now, "g", "a"); got != "2" || now.Version(store.Ref{Generator: "g"}) != v2 {
		t.Errorf("%q", got)
	}
	if _, err := now.Open(t.Context(), arena(t), store.Ref{Generator: "other"}, "a"); err == nil {
		t.Error("a generator that was not pinned is read")
	}
}

func conflicts(t *testing.T, open func() store.Store) {
	s := open()
	v := put(t, s, "g", "", map[string]string{"a": "1"})
	for _, base := range []store.Version{"", "another"} {
		var c *store.ConflictError
		if _, err := tryPut(t, s, "g", base, map[string]string{"a": "2"}); !errors.As(err, &c) || c.Now != v || c.Base != base || c.Hint() == "" {
			t.Errorf("%v", err)
		}
	}
	var c *store.ConflictError
	if _, err := tryPut(t, s, "none", v, map[string]string{"a": "2"}); !errors.As(err, &c) || c.Now != "" {
		t.Errorf("%v", err)
	}
	if got := get(t, pin(t, s, "g"), "g", "a"); got != "1" {
		t.Errorf("%q", got)
	}
	for _, name := range []string{"", ".", "..", "a/b", "../x", ".x", "a b", "ä"} {
		if _, err := tryPut(t, s, name, "", nil); err == nil {
			t.Errorf("a generator is called %q", name)
		}
		if _, err := tryPut(t, s, "ok", "", map[string]string{name: "x"}); err == nil {
			t.Errorf("a file is called %q", name)
		}
	}
}

func notFound(t *testing.T, open func() store.Store) {
	s := open()
	put(t, s, "secrets", "", map[string]string{"a": "1"})
	for _, r := range []store.Ref{{Generator: "secret"}, {Scope: "nobody's", Generator: "secrets"}} {
		var none *store.NotFoundError
		if _, err := s.Pin(t.Context(), store.Ref{Generator: "secrets"}, r); !errors.As(err, &none) || !errors.Is(err, fs.ErrNotExist) || none.Ref != r {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, name := range []string{"", "..", "a/b", "/etc"} {
		if _, err := s.Pin(t.Context(), store.Ref{Generator: name}); err == nil {
			t.Errorf("%q is a generator", name)
		}
	}
}

func versions(t *testing.T, open func() store.Store) {
	s := open()
	ref := store.Ref{Generator: "g"}
	v := put(t, s, "g", "", map[string]string{"a": "1"})
	for range 3 {
		if got := pin(t, open(), "g").Version(ref); got != v {
			t.Errorf("%s, then %s", v, got)
		}
	}
	seen := map[store.Version]bool{v: true}
	for _, files := range []map[string]string{{"a": "2"}, {"a": "2", "b": ""}, {"b": "2"}, {"a": "1"}} {
		if v = put(t, s, "g", v, files); seen[v] || v == "" || len(v) > 64 {
			t.Errorf("version %q", v)
		}
		seen[v] = true
	}
}

// rotation replaces two generators all the time: no snapshot has two versions of one.
func rotation(t *testing.T, open func() store.Store) {
	s := open()
	v := put(t, s, "g", "", map[string]string{"a": "0", "b": "0"})
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
				v = put(t, s, "g", v, map[string]string{"a": fmt.Sprint(n), "b": fmt.Sprint(n)})
			}
		}
	})
	other := open()
	last := ""
	changes := 0
	for range 300 {
		snap := pin(t, other, "g")
		a, b := get(t, snap, "g", "a"), get(t, snap, "g", "b")
		if a != b {
			t.Errorf("%s with %s", a, b)
		}
		if a != last {
			changes++
		}
		last = a
		_ = snap.Close()
	}
	close(stop)
	done.Wait()
	if changes < 2 {
		t.Errorf("%d changes were seen", changes)
	}
}

// writers all read, and put what they read and one more: none is lost.
func writers(t *testing.T, open func() store.Store) {
	put(t, open(), "g", "", map[string]string{"n": ""})
	var done sync.WaitGroup
	const each, all = 10, 4
	for range all {
		done.Go(func() {
			s := open()
			for n := 0; n < each; {
				snap, err := s.Pin(t.Context(), store.Ref{Generator: "g"})
				if err != nil {
					t.Error(err)
					return
				}
				text, base := get(t, snap, "g", "n"), snap.Version(store.Ref{Generator: "g"})
				_ = snap.Close()
				_, err = tryPut(t, s, "g", base, map[string]string{"n": text + "x"})
				var c *store.ConflictError
				switch {
				case err == nil:
					n++
				case !errors.As(err, &c):
					t.Error(err)
					return
				}
			}
		})
	}
	done.Wait()
	if got := get(t, pin(t, open(), "g"), "g", "n"); got != string(bytes.Repeat([]byte("x"), each*all)) {
		t.Errorf("%d of %d are there", len(got), each*all)
	}
}
