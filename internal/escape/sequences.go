// SPDX-License-Identifier: Apache-2.0

package escape

import (
	"slices"
	"strings"
)

// mode is one that a guest may change, and what ends it.
type mode struct {
	number string // with its "?"
	scope  Scope
	off    byte // what Close sends if it was changed: 'h', 'l' or 0 for nothing
}

// modes are the ones of CSI … h and CSI … l.
var modes = []mode{
	{"?25", Show, 'h'},       // the cursor is seen
	{"?1", Interact, 'l'},    // cursor keys send what applications want
	{"?7", Interact, 'h'},    // lines wrap
	{"?47", Interact, 'l'},   // the other screen
	{"?1047", Interact, 'l'}, // the other screen
	{"?1048", Interact, 0},   // the cursor is kept
	{"?1049", Interact, 'l'}, // the other screen, and the cursor is kept
	{"4", Interact, 'l'},     // characters are put between
}

const (
	colourOff   = "\x1b[m"
	numericKeys = "\x1b>"
	wholeScreen = "\x1b7\x1b[r\x1b8" // the margins go and the cursor stays
	csi         = "\x1b["
)

// undos are in the order in which they are sent: what belongs to a screen before
// that screen goes.
var undos = slices.Concat(
	[]string{colourOff, wholeScreen, numericKeys},
	undosOfModes(),
)

func undosOfModes() []string {
	var out []string
	for _, m := range modes {
		if m.off != 0 {
			out = append(out, m.undo())
		}
	}
	return out
}

func (m mode) undo() string { return csi + m.number + string(m.off) }

// short passes on a sequence of ESC and one byte.
func (f *Filter) short(c byte) {
	switch c {
	case '7', '8', 'D', 'E', 'M': // the cursor: kept, put back; a line down, its start, a line up
	case '=', '>': // the number keys' mode
		if f.scope < Interact {
			return
		}
		f.undo[numericKeys] = true
	default:
		return
	}
	f.out = append(f.out, 0x1b, c)
}

// sequence passes on ESC [ and what was collected, with its last byte.
func (f *Filter) sequence(final byte) {
	args := string(f.seq)
	switch {
	case final == 'h' || final == 'l':
		f.setModes(args, final)
		return
	case !f.allowed(args, final):
		return
	case final == 'm':
		f.undo[colourOff] = true
	case final == 'r':
		f.undo[wholeScreen] = true
	}
	f.out = append(f.out, csi...)
	f.out = append(f.out, args...)
	f.out = append(f.out, final)
}

func (f *Filter) allowed(args string, final byte) bool {
	switch final {
	case 'm': // colours; 38:2:… has colons
		return only(args, "0123456789;:")
	case 'A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', 'f', 'd', '@', 'P', 'L', 'M', 'X':
		return only(args, "0123456789;")
	case 'J', 'K': // 3J would erase what has scrolled off, which is not the guest's
		return args == "" || args == "0" || args == "1" || args == "2"
	case 's', 'u': // with arguments they are margins, and the keyboard's protocol
		return args == ""
	case 'r':
		return f.scope >= Interact && only(args, "0123456789;")
	}
	return false
}

// setModes passes on those of several modes that may be changed, one by one.
func (f *Filter) setModes(args string, final byte) {
	private := ""
	if rest, ok := strings.CutPrefix(args, "?"); ok {
		private, args = "?", rest
	}
	for number := range strings.SplitSeq(args, ";") {
		for _, m := range modes {
			if m.number != private+number || m.scope > f.scope {
				continue
			}
			if m.off != 0 {
				f.undo[m.undo()] = true
			}
			f.out = append(f.out, csi+m.number...)
			f.out = append(f.out, final)
		}
	}
}

func only(s, set string) bool { return strings.Trim(s, set) == "" }
