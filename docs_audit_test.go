// SPDX-License-Identifier: Apache-2.0

package vmcred_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/audit"
)

// The keys of a record in docs/audit.md are those of the code.
func TestRecordIsDocumented(t *testing.T) {
	want := []string{"mac", "hash"}
	var keys func(reflect.Type)
	keys = func(r reflect.Type) {
		for i := range r.NumField() {
			f := r.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			want = append(want, name)
			if f.Type.Kind() == reflect.Pointer {
				keys(f.Type.Elem())
			}
		}
	}
	keys(reflect.TypeFor[audit.Record]())
	var told []string
	for _, row := range readPage(t, "docs/audit.md").table("What is in a record") {
		for _, m := range codeSpan.FindAllStringSubmatch(row[0]+nested(row), -1) {
			told = append(told, m[1])
		}
	}
	slices.Sort(want)
	slices.Sort(told)
	if want, told = slices.Compact(want), slices.Compact(told); !slices.Equal(want, told) {
		t.Errorf("docs/audit.md has the keys %q, a record %q", told, want)
	}
}

// nested are the keys that a row names in its second cell.
func nested(row []string) string {
	if row[0] == "`by`" || row[0] == "`credential`" {
		return row[1]
	}
	return ""
}
