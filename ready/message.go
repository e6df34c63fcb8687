// SPDX-License-Identifier: Apache-2.0

// Package ready is what a guest tells its host about itself: messages of
// sd_notify(3), read from an untrusted peer and rebuilt from an allow-list, so
// that a guest can say that it is up and can do nothing else to the host's
// systemd. Nothing here proves who in the guest spoke.
package ready

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of a message.
const (
	MaxMessage = 4096 // bytes read of one message; what is behind is not looked at
	MaxStatus  = 256  // bytes of a STATUS
	MaxUnit    = 255  // bytes of a unit's name, systemd's own limit

	maxErrno   = 4095 // the kernel's MAX_ERRNO
	maxExit    = 255
	maxDropped = 16 // names kept in Message.Dropped
	maxKey     = 32 // bytes of such a name
)

// The keys of the allow-list.
const (
	keyReady    = "READY"
	keyStatus   = "STATUS"
	keyErrno    = "ERRNO"
	keyExit     = "EXIT_STATUS"
	keyActive   = "X_SYSTEMD_UNIT_ACTIVE"
	keyInactive = "X_SYSTEMD_UNIT_INACTIVE"
)

// ErrNoMessage says that there was no line KEY=VALUE in what the guest sent.
var ErrNoMessage = errors.New("no message in it")

// Message is what is left of a guest's message. Every field is fit for a log, a
// terminal and the host's systemd; whether it is true, only the guest knows.
type Message struct {
	Ready        bool   // READY=1: the guest is up
	Status       string // at most MaxStatus bytes of printable UTF-8; empty: none
	Errno        *int   // 0 to 4095; nil: none
	ExitStatus   *int   // 0 to 255; nil: none
	UnitActive   string // a unit that became active; empty: none
	UnitInactive string // a unit that became inactive; empty: none

	// Dropped names the keys that were not kept, each once, at most 16: at most 32
	// of A-Z, 0-9 and _, with a ? for any other byte.
	Dropped []string
}

// Parse reads the message in b: lines KEY=VALUE. Of two valid lines with the same
// key the last one counts. It returns [ErrNoMessage] when there is no such line;
// a message of which nothing is kept is no error, see [Message.IsZero].
func Parse(b []byte) (Message, error) {
	if len(b) > MaxMessage {
		b = whole(b[:MaxMessage])
	}
	var m Message
	found := false
	for line := range bytes.SplitSeq(b, []byte("\n")) {
		key, value, ok := bytes.Cut(line, []byte("="))
		if !ok || len(key) == 0 {
			continue
		}
		found = true
		if !m.set(string(key), string(value)) {
			m.drop(string(key))
		}
	}
	if !found {
		return m, ErrNoMessage
	}
	return m, nil
}

// whole is b without the line at its end that something cut.
func whole(b []byte) []byte { return b[:bytes.LastIndexByte(b, '\n')+1] }

// set takes one line, or says that it is not for the host.
func (m *Message) set(key, value string) bool {
	switch key {
	case keyReady:
		m.Ready = m.Ready || value == "1"
		return value == "1"
	case keyStatus:
		return keep(&m.Status, status(value))
	case keyErrno:
		return keepNumber(&m.Errno, value, maxErrno)
	case keyExit:
		return keepNumber(&m.ExitStatus, value, maxExit)
	case keyActive:
		return keep(&m.UnitActive, unitName(value))
	case keyInactive:
		return keep(&m.UnitInactive, unitName(value))
	}
	return false
}

func keep(to *string, value string) bool {
	if value == "" {
		return false
	}
	*to = value
	return true
}

func keepNumber(to **int, value string, most uint64) bool {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || n > most {
		return false
	}
	i := int(n)
	*to = &i
	return true
}

// status makes a text fit for a terminal and a log: only what prints. Formatting
// characters (the bidirectional and the invisible ones) do not count as such.
func status(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == ' ', unicode.Is(unicode.Zs, r), r == '\t':
			return ' '
		case unicode.IsPrint(r):
			return r // also U+FFFD, for each byte that is no UTF-8
		}
		return -1
	}, s)
	s = strings.Trim(s, " ")
	if len(s) > MaxStatus {
		n := MaxStatus
		for !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	return strings.TrimRight(s, " ")
}

// unitName is the name, or nothing when systemd would not have such a unit.
func unitName(s string) string {
	bad := func(r rune) bool { return !isAlnum(r) && !strings.ContainsRune(`:-_.\@`, r) }
	if len(s) > MaxUnit || strings.HasPrefix(s, ".") || !strings.Contains(s, ".") || strings.ContainsFunc(s, bad) {
		return ""
	}
	return s
}

func isAlnum(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z'
}

func (m *Message) drop(key string) {
	name := printableKey(key)
	if len(m.Dropped) >= maxDropped {
		return
	}
	for _, d := range m.Dropped {
		if d == name {
			return
		}
	}
	m.Dropped = append(m.Dropped, name)
}

func printableKey(key string) string {
	b := []byte(key[:min(len(key), maxKey)])
	for i, c := range b {
		if c != '_' && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			b[i] = '?'
		}
	}
	return string(b)
}

// IsZero reports that nothing of the message was kept.
func (m Message) IsZero() bool { return m.State() == "" }

// State is the message in sd_notify's form: lines KEY=VALUE in a fixed order, a
// newline between two of them and none at the end. It is empty when nothing was
// kept. Parsed again it gives the same message.
func (m Message) State() string {
	var lines []string
	add := func(key, value string) {
		if value != "" {
			lines = append(lines, key+"="+value)
		}
	}
	if m.Ready {
		add(keyReady, "1")
	}
	add(keyStatus, m.Status)
	add(keyErrno, number(m.Errno))
	add(keyExit, number(m.ExitStatus))
	add(keyActive, m.UnitActive)
	add(keyInactive, m.UnitInactive)
	return strings.Join(lines, "\n")
}

func number(n *int) string {
	if n == nil {
		return ""
	}
	return strconv.Itoa(*n)
}
