// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/internal/testtty"
	"github.com/vmcred/vmcred/state"
)

// What a guest writes reaches a terminal filtered, and anything else as it is.
func TestConsoleOnATerminal(t *testing.T) {
	ours, tty, err := testtty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const said = "a\x1b[31mb\x1b]52;c;AAAA\a\x1b[6nc"
	for f, want := range map[*os.File]string{tty: "a\x1b[31mbc\x1b[m", w: said} {
		out, done := (&app{stdout: f}).console(slog.New(slog.DiscardHandler))
		if _, err := io.WriteString(out, said); err != nil {
			t.Error(err)
		}
		done()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		got, _ := io.ReadAll(map[*os.File]io.Reader{tty: ours, w: r}[f]) // EIO at a terminal's end
		if string(got) != want {
			t.Errorf("%q arrived, want %q", got, want)
		}
	}
}

// Whether the guest has read a value is shown as soon as anything is known of it.
func TestProofIsShown(t *testing.T) {
	given := []state.Delivered{
		{Host: "host-a", Guest: "HOST_A", Bytes: 8, Channel: "smbios", Proven: state.Proven},
		{Guest: "B", Bytes: 9, Channel: "fw_cfg", Proven: state.Unproven},
	}
	var out strings.Builder
	showDelivered(&out, style{}, given)
	const want = "ON THE HOST  IN THE GUEST  BYTES  CHANNEL  PROVEN\n" +
		"host-a       HOST_A        8      smbios   yes\n" +
		"(static)     B             9      fw_cfg   no\n"
	if out.String() != want {
		t.Errorf("%s", out.String())
	}
}
