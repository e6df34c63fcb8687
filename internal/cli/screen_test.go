// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
)

// A console that cannot be written is told once; a reader that wants no more is not.
func TestConsoleThatIsLostIsSaid(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_ = r.Close()
	for name, tc := range map[string]struct {
		to   *os.File
		want int
	}{"a full disk": {full, 1}, "a reader that is gone": {w, 0}} {
		var log bytes.Buffer
		s := &screen{to: tc.to, log: slog.New(slog.NewTextHandler(&log, nil))}
		for range 2 {
			if _, err := s.Write([]byte("x")); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
		if n := strings.Count(log.String(), "the guest's console is lost"); n != tc.want {
			t.Errorf("%s: said %d times:\n%s", name, n, log.String())
		}
	}
}
