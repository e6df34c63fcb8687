// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// format writes a report as the guest does, from the first line to the last.
func format(r *Report) string {
	var b strings.Builder
	line := func(f string, a ...any) { fmt.Fprintf(&b, prefix+f+"\n", a...) }
	mem := func(kind string, m Memory) { line("%s at=0x%08x bytes=%d sha256=%x", kind, m.At, m.Bytes, m.SHA256) }
	line("begin 1")
	line("platform %s", r.Platform)
	mem("cmdline", r.Cmdline)
	for _, m := range r.Initrds {
		mem("initrd", m)
	}
	if s := r.SMBIOS; s == nil {
		line("smbios none")
	} else {
		line("smbios anchor=%s at=0x%08x table=0x%08x bytes=%d structures=%d", s.Anchor, s.At, s.Table, s.Bytes, s.Count)
		for _, s := range s.Structures {
			count := ""
			if s.Type == oemStrings {
				count = fmt.Sprintf("count=%d ", s.Count)
			}
			line("structure type=%d handle=0x%04x bytes=%d %sstrings=%d", s.Type, s.Handle, s.Bytes, count, s.Found)
			for _, v := range s.Strings {
				line("string handle=0x%04x index=%d bytes=%d sha256=%x", s.Handle, v.Index, v.Bytes, v.SHA256)
			}
		}
	}
	if !r.HasFwCfg {
		line("fw_cfg none")
	}
	for _, f := range r.FwCfg {
		d := ""
		if f.Digested {
			d = fmt.Sprintf(" sha256=%x", f.SHA256)
		}
		line("fw_cfg name=%s bytes=%d%s", escape(f.Name), f.Bytes, d)
	}
	if r.Ready != nil {
		formatReady(line, r.Ready)
	}
	line("end")
	return b.String()
}

func formatReady(line func(string, ...any), r *Ready) {
	switch {
	case !r.Found:
		line("ready none")
	case r.Invalid:
		line("ready invalid")
	default:
		line("ready cid=%d port=%d", r.CID, r.Port)
	}
	for _, m := range r.Messages {
		line("message bytes=%d end=%s text=%s", len(m.Text), m.End, escape(m.Text))
	}
}

func example() *Report {
	d := Digest(sha256.Sum256([]byte("hello")))
	return &Report{
		Platform: "q35",
		Cmdline:  Memory{At: 0x11c0, Bytes: 5, SHA256: d},
		Initrds:  []Memory{{At: 0x7fd6000, Bytes: 5000, SHA256: d}},
		SMBIOS: &SMBIOS{Anchor: "_SM_", At: 0xf59f0, Table: 0xf5a10, Bytes: 394, Count: 3, Structures: []Structure{
			{Type: 0, Bytes: 67, Found: 3},
			{Type: 11, Handle: 0xb00, Bytes: 18, Count: 2, Found: 2, Strings: []String{{1, 5, d}, {2, 5, d}}},
			{Type: 127, Handle: 0x7f00, Bytes: 6},
		}},
		HasFwCfg: true,
		FwCfg:    []File{{Name: "etc/e820", Bytes: 40}, {Name: "opt/odd %\x01", Bytes: 5, Digested: true, SHA256: d}},
		Ready: &Ready{Found: true, CID: 2, Port: 9999, Messages: []Message{
			{MessageActive, Closed}, {"", Refused}, {"\x1b[2J %", Cut}, {MessageReady, TimedOut},
		}},
	}
}

func TestParseReadsWhatTheGuestWrites(t *testing.T) {
	want := format(example())
	got, err := Parse(strings.NewReader("SeaBIOS\r\n\x1b[2J\n" + want + "more from the firmware\n"))
	if err != nil {
		t.Fatal(err)
	}
	if format(got) != want {
		t.Errorf("got\n%swant\n%s", format(got), want)
	}
	if n := len(got.OEM()); n != 1 {
		t.Errorf("%d type 11 structures, want 1", n)
	}
}

// Every report that lost a line or a byte anywhere must be noticed.
func TestParseNoticesAnyLoss(t *testing.T) {
	whole := format(example())
	for i := range len(whole) {
		if _, err := Parse(strings.NewReader(whole[:i])); err == nil {
			t.Errorf("cut to %d of %d bytes: no error", i, len(whole))
		}
	}
	lines := strings.SplitAfter(whole, "\n")
	for i, l := range lines[:len(lines)-1] {
		// One module, file or message fewer is a report of its own.
		if strings.HasPrefix(l, "probe: initrd") || strings.HasPrefix(l, "probe: fw_cfg") || strings.HasPrefix(l, "probe: message") {
			continue
		}
		left := strings.Join(lines[:i], "") + strings.Join(lines[i+1:], "")
		if _, err := Parse(strings.NewReader(left)); err == nil {
			t.Errorf("without %q: no error", l)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	whole := format(example())
	swap := func(old, new string) string { return strings.Replace(whole, old, new, 1) }
	cases := map[string]struct{ in, says string }{
		"nothing":            {"", "did not start"},
		"two reports":        {whole + whole, "reported twice"},
		"the guest's fault":  {swap("probe: fw_cfg name=etc", "probe: error smbios-structure-cut\nprobe: fw_cfg name=etc"), "smbios-structure-cut"},
		"carriage returns":   {strings.ReplaceAll(whole, "\n", "\r\n"), "before"},
		"a leading zero":     {swap("bytes=18", "bytes=018"), "bytes="},
		"upper case":         {swap("0x0b00", "0x0B00"), "0x0B00"},
		"a foreign handle":   {swap("string handle=0x0b00", "string handle=0x0b01"), "handle"},
		"a wrong index":      {swap("index=2", "index=3"), "string 3 where 2"},
		"too many of a type": {swap("type=127", "type=300"), "type="},
		"a longer line":      {swap("bytes=67 strings=3", "bytes=67 strings=3 x=1"), "too much"},
		"a space at the end": {swap("bytes=67 strings=3", "bytes=67 strings=3 "), "empty word"},
		"another order":      {swap("probe: platform q35\n", ""), "platform"},
		"a short digest":     {swap("sha256=2c", "sha256="), "sha256="},
		"a plain percent":    {swap("%25", "%zz"), "not escaped"},
		"no address":         {swap("ready cid=2 port=9999", "ready"), "an empty word"},
		"two addresses":      {swap("ready cid=2 port=9999", "ready none"), "report's end belongs"},
		"another end":        {swap("end=cut", "end=open"), `end="open"`},
		"a shorter message":  {swap("bytes=6 end=cut", "bytes=5 end=cut"), "6 bytes of text where 5 belong"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(strings.NewReader(c.in))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one with %q", err, c.says)
			}
		})
	}
	if _, err := Parse(strings.NewReader(strings.TrimSuffix(whole, "probe: end\n"))); !errors.Is(err, ErrCut) {
		t.Errorf("without its end: %v, want ErrCut", err)
	}
}

// What Parse accepts it can write again, byte for byte: nothing is guessed.
func FuzzParse(f *testing.F) {
	f.Add(format(example()))
	f.Add("noise\n" + format(&Report{Platform: "unknown"}))
	for _, r := range []Ready{{}, {Found: true, Invalid: true}, {Found: true, CID: 1<<32 - 1}} {
		f.Add(format(&Report{Platform: "cloud-hypervisor", Ready: &r}))
	}
	f.Fuzz(func(t *testing.T, in string) {
		r, err := Parse(strings.NewReader(in))
		if err != nil {
			return
		}
		at := strings.Index("\n"+in, "\n"+first+"\n")
		if want := format(r); !strings.HasPrefix(in[at:], want) {
			t.Errorf("parsed\n%q\nwrites as\n%q", in[at:], want)
		}
	})
}
