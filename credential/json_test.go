// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzAppendJSON: what is appended decodes to the same text, in as many bytes as
// were announced.
func FuzzAppendJSON(f *testing.F) {
	for _, s := range []string{"", "plain", `a"b\c`, "\x00\x1f\x7f\n", "ß€𝄞", "\xff", "</script>", strings.Repeat("é", 100)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			if n := JSONLen(s); n != -1 {
				t.Fatalf("%d bytes for what is not UTF-8", n)
			}
			return
		}
		b := AppendJSON([]byte(`"`), s)
		if len(b)-1 != JSONLen(s) {
			t.Fatalf("%d bytes, announced were %d", len(b)-1, JSONLen(s))
		}
		var back string
		if err := json.Unmarshal(append(b, '"'), &back); err != nil || back != s {
			t.Fatalf("%q becomes %q: %v", s, back, err)
		}
	})
}
