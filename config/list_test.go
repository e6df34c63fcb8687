// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestList(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"web.json", "db.yaml", "db.json", "old.yml", "Büro.yaml", ".hidden.yaml", "README", "a.yaml"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		name string
		ok   bool
	}{{"Büro.yaml", false}, {"a", true}, {"db", false}, {"old.yml", false}, {"web", true}}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i, w := range want {
		var e *FindError
		if got[i].Name != w.name || (got[i].Err == nil) != w.ok || !w.ok && (!errors.As(got[i].Err, &e) || e.Hint() == "") || w.ok && filepath.Dir(got[i].Path) != dir {
			t.Errorf("%+v, want %+v", got[i], w)
		}
	}
	if _, err := List(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
