// SPDX-License-Identifier: Apache-2.0

package ready

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func ptr(n int) *int { return &n }

func TestParse(t *testing.T) {
	long := strings.Repeat("x", MaxUnit-len(".service"))
	for name, tc := range map[string]struct {
		in   string
		want Message
	}{
		"systemd's own": {"READY=1\nSTATUS=Startup finished in 1.5s.", Message{Ready: true, Status: "Startup finished in 1.5s."}},
		"every key": {"READY=1\nSTATUS=a=b\nERRNO=4095\nEXIT_STATUS=255\nX_SYSTEMD_UNIT_ACTIVE=a@b\\x2d.service\nX_SYSTEMD_UNIT_INACTIVE=c.target\n", Message{
			Ready: true, Status: "a=b", Errno: ptr(4095), ExitStatus: ptr(255), UnitActive: `a@b\x2d.service`, UnitInactive: "c.target",
		}},
		"zeros are values":        {"ERRNO=0\nEXIT_STATUS=0", Message{Errno: ptr(0), ExitStatus: ptr(0)}},
		"what would steer a host": {"MAINPID=1\nFDSTORE=1\nFDNAME=x\nEXTEND_TIMEOUT_USEC=9\nWATCHDOG=1\nWATCHDOG_USEC=1\nRELOADING=1\nSTOPPING=1\nBARRIER=1\nMONOTONIC_USEC=1\nNOTIFYACCESS=all", Message{Dropped: []string{"MAINPID", "FDSTORE", "FDNAME", "EXTEND_TIMEOUT_USEC", "WATCHDOG", "WATCHDOG_USEC", "RELOADING", "STOPPING", "BARRIER", "MONOTONIC_USEC", "NOTIFYACCESS"}}},
		"the last one counts":     {"STATUS=a\nSTATUS=b\nERRNO=1\nERRNO=2", Message{Status: "b", Errno: ptr(2)}},
		"the last valid one":      {"ERRNO=2\nERRNO=x\nREADY=1\nREADY=0", Message{Ready: true, Errno: ptr(2), Dropped: []string{"ERRNO", "READY"}}},
		"numbers out of range":    {"ERRNO=4096\nEXIT_STATUS=256", Message{Dropped: []string{"ERRNO", "EXIT_STATUS"}}},
		"no numbers":              {"ERRNO=-1\nEXIT_STATUS=+1\nERRNO=\nERRNO=0x1\nERRNO= 1", Message{Dropped: []string{"ERRNO", "EXIT_STATUS"}}},
		"not exactly one":         {"READY=11\nready=1\nREADY =1\n READY=1\r\nREADY=1\r", Message{Dropped: []string{"READY", "?????", "READY?", "?READY"}}},
		"escapes":                 {"STATUS=\x1b[31mred\x07\x00\x7f\tx\u0085\u009b", Message{Status: "[31mred x"}},
		"bidi, invisible":         {"STATUS=a\u202eb\u2066c\u200ed\u200be\ufefff\u061cg\u2028h", Message{Status: "abcdefgh"}},
		"no UTF-8":                {"STATUS=a\xffb\xc2", Message{Status: "a\ufffdb\ufffd"}},
		"other letters":           {"STATUS=läuft 启动", Message{Status: "läuft 启动"}},
		"nothing printable":       {"STATUS=\x1b", Message{Dropped: []string{"STATUS"}}},
		"long status":             {"STATUS=" + strings.Repeat("ä", 200), Message{Status: strings.Repeat("ä", 128)}},
		"status cut in a letter":  {"STATUS=x" + strings.Repeat("ä", 200), Message{Status: "x" + strings.Repeat("ä", 127)}},
		"status cut at a space":   {"STATUS=" + strings.Repeat("x", MaxStatus-1) + " y", Message{Status: strings.Repeat("x", MaxStatus-1)}},
		"longest unit":            {"X_SYSTEMD_UNIT_ACTIVE=" + long + ".service", Message{UnitActive: long + ".service"}},
		"unit too long":           {"X_SYSTEMD_UNIT_ACTIVE=x" + long + ".service", Message{Dropped: []string{"X_SYSTEMD_UNIT_ACTIVE"}}},
		"no unit":                 {"X_SYSTEMD_UNIT_ACTIVE=a b.service\nX_SYSTEMD_UNIT_INACTIVE=../x\nX_SYSTEMD_UNIT_ACTIVE=.service\nX_SYSTEMD_UNIT_ACTIVE=x", Message{Dropped: []string{"X_SYSTEMD_UNIT_ACTIVE", "X_SYSTEMD_UNIT_INACTIVE"}}},
		"long key":                {strings.Repeat("K", 100) + "=1\nÄ=1", Message{Dropped: []string{strings.Repeat("K", 32), "??"}}},
		"behind the limit":        {"READY=1\n" + strings.Repeat("a", MaxMessage) + "\nERRNO=1", Message{Ready: true}},
		"cut at the limit":        {"READY=1\nSTATUS=" + strings.Repeat("a", MaxMessage), Message{Ready: true}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]byte(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
			checkMessage(t, got)
		})
	}
}

func TestParseFindsNothing(t *testing.T) {
	for _, in := range []string{"", "\n\n", "READY", "=1", "READY=1" + strings.Repeat("x", MaxMessage)} {
		if m, err := Parse([]byte(in)); !errors.Is(err, ErrNoMessage) || !m.IsZero() {
			t.Errorf("%.20q: %+v, %v", in, m, err)
		}
	}
}

func TestDroppedNamesAreFew(t *testing.T) {
	var in []byte
	for c := byte('A'); c <= 'Z'; c++ {
		in = append(in, c, '=', '\n', c, '=', '\n')
	}
	if m, _ := Parse(in); len(m.Dropped) != maxDropped {
		t.Errorf("%d names: %q", len(m.Dropped), m.Dropped)
	}
}

type fataler interface {
	Errorf(format string, args ...any)
}

// checkMessage checks what holds for every message.
func checkMessage(t fataler, m Message) {
	state := m.State()
	if m.IsZero() != (state == "") {
		t.Errorf("IsZero is %v of %q", m.IsZero(), state)
	}
	if !utf8.ValidString(state) || len(state) > MaxMessage {
		t.Errorf("not valid: %q", state)
	}
	allowed := []string{keyReady, keyStatus, keyErrno, keyExit, keyActive, keyInactive}
	var seen []string
	for line := range strings.Lines(state) {
		line = strings.TrimSuffix(line, "\n")
		key, value, ok := strings.Cut(line, "=")
		if !ok || value == "" || !slices.Contains(allowed, key) || slices.Contains(seen, key) {
			t.Errorf("a line %q in %q", line, state)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return unicode.In(r, unicode.C, unicode.Zl, unicode.Zp) }) {
			t.Errorf("%q holds what does not print", line)
		}
		seen = append(seen, key)
	}
	if len(m.Status) > MaxStatus || len(m.UnitActive) > MaxUnit || len(m.UnitInactive) > MaxUnit || len(m.Dropped) > maxDropped {
		t.Errorf("too long: %+v", m)
	}
	for _, d := range m.Dropped {
		if len(d) > maxKey || strings.Trim(d, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_?") != "" {
			t.Errorf("a dropped name %q", d)
		}
	}
	again, _ := Parse([]byte(state))
	m.Dropped = nil
	if !reflect.DeepEqual(again, m) {
		t.Errorf("%q parsed again is %+v, not %+v", state, again, m)
	}
}

func TestStateIsCanonical(t *testing.T) {
	key := rapid.SampledFrom([]string{"READY", "STATUS", "ERRNO", "EXIT_STATUS", "X_SYSTEMD_UNIT_ACTIVE", "X_SYSTEMD_UNIT_INACTIVE", "MAINPID", "FDSTORE", "status"})
	value := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z:@_.\\-]{1,300}\.(service|target)`),
		rapid.StringMatching(`-?[0-9]{0,5}`), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	rapid.Check(t, func(t *rapid.T) {
		var in strings.Builder
		for range rapid.IntRange(0, 12).Draw(t, "lines") {
			in.WriteString(key.Draw(t, "key") + "=" + value.Draw(t, "value") + "\n")
		}
		m, _ := Parse([]byte(in.String()))
		checkMessage(t, m)
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"READY=1\nSTATUS=Startup finished in 1.5s.", "X_SYSTEMD_UNIT_ACTIVE=multi-user.target", "ERRNO=7\nEXIT_STATUS=0\n",
		"MAINPID=1\nFDSTORE=1\nEXTEND_TIMEOUT_USEC=1", "STATUS=\x1b[31m\u202e\xff \x00", "STATUS= \u00a0 x \u3000", "=\n\n=1\nREADY",
		"READY=1\n" + strings.Repeat("STATUS=abc\n", 400),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil && (!m.IsZero() || m.Dropped != nil) {
			t.Errorf("an error and a message: %+v", m)
		}
		checkMessage(t, m)
	})
}
