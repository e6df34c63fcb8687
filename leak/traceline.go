// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"strconv"
)

// lineKind is what a line of strace's output is about.
type lineKind int

const (
	lineUnknown lineKind = iota
	lineCall             // a system call, with its arguments
	lineResumed          // the end of one that was begun on an earlier line
	lineEvent            // a signal, an exit
)

// traceLine is one line of strace -f -xx.
type traceLine struct {
	kind lineKind
	pid  int
	name string // the system call
	// args is what stands between the parentheses; for lineResumed what is left of it.
	args []byte
	// result is what stands behind "= "; empty for a call that has not ended.
	result []byte
}

// parseLine takes a line apart, without its newline. The result points into it.
//
//	1234 write(1<\x2f\x78>, "\x61", 1) = 1
//	1234 write(1<\x2f\x78>, "\x61", 1 <unfinished ...>
//	1234 <... write resumed>)   = 1
//	1234 --- SIGCHLD {…} ---
//	1234 +++ exited with 0 +++
//	1234 ???( <unfinished ...>
func parseLine(line []byte) traceLine {
	var l traceLine
	digits := 0
	for digits < len(line) && line[digits] >= '0' && line[digits] <= '9' {
		digits++
	}
	pid, err := strconv.Atoi(string(line[:digits]))
	rest := bytes.TrimLeft(line[digits:], " ")
	if err != nil || len(rest) == len(line)-digits {
		return l
	}
	l.pid = pid
	switch {
	case framed(rest, "--- "), framed(rest, "+++ "), neverRan(rest):
		l.kind = lineEvent
		return l
	case bytes.HasPrefix(rest, []byte("<... ")):
		name, args, ok := bytes.Cut(rest[5:], []byte(" resumed>"))
		if !ok || !isName(name) {
			return l
		}
		return l.call(lineResumed, name, args)
	}
	name, args, ok := bytes.Cut(rest, []byte("("))
	if !ok || !isName(name) {
		return l
	}
	return l.call(lineCall, name, args)
}

func framed(b []byte, mark string) bool {
	return len(b) >= 2*len(mark) && bytes.HasPrefix(b, []byte(mark)) && bytes.HasSuffix(b, []byte(mark[3:]+mark[:3]))
}

// neverRan tells the line about a thread that was killed as it came to a call,
// before strace could ask which: such a call does not run.
func neverRan(b []byte) bool {
	rest := bytes.TrimLeft(b, "?")
	return len(rest) < len(b) && string(rest) == "( <unfinished ...>"
}

func isName(b []byte) bool {
	for _, c := range b {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return len(b) > 0
}

// call finds where the arguments end.
func (l traceLine) call(kind lineKind, name, args []byte) traceLine {
	for _, end := range []string{"<unfinished ...>", "<detached ...>", "<ptrace(SYSCALL):No such process>"} {
		if a, ok := bytes.CutSuffix(args, []byte(end)); ok {
			l.kind, l.name, l.args = kind, string(name), a
			return l
		}
	}
	end := argsEnd(args, 0)
	// What was begun on an earlier line may have opened braces there.
	for depth := 1; end < 0 && kind == lineResumed && depth <= maxDepth; depth++ {
		end = argsEnd(args, depth)
	}
	if end < 0 {
		return l
	}
	result, ok := bytes.CutPrefix(bytes.TrimLeft(args[end+1:], " "), []byte("= "))
	if !ok {
		return l
	}
	l.kind, l.name, l.args, l.result = kind, string(name), args[:end], result
	return l
}

// maxDepth is how deep structures stand in each other where a call was begun.
const maxDepth = 8

// argsEnd finds the closing parenthesis, or returns -1.
func argsEnd(args []byte, depth int) int {
	end := -1
	eachPartFrom(args, depth, func(p part) bool {
		if p.kind == partEnd {
			end = p.from
		}
		return p.kind != partEnd
	})
	return end
}

// failed reports whether the call ended with an error, or has not ended.
func (l traceLine) failed() bool {
	return len(l.result) == 0 || l.result[0] == '-' || l.result[0] == '?'
}

// threadName says whether a string is a thread's name that strace shows as far as
// the kernel takes it: 15 bytes.
func (l traceLine) threadName(p part) bool {
	return p.cut && l.name == "prctl" && bytes.HasPrefix(l.args, []byte("PR_SET_NAME"))
}

// number is the result as a number, 0 if it is none.
func (l traceLine) number() int {
	field, _, _ := bytes.Cut(l.result, []byte(" "))
	n, err := strconv.Atoi(string(field))
	if err != nil {
		return 0
	}
	return n
}

type partKind int

const (
	partString     partKind = iota // "…", or "…"... if strace cut it
	partDescriptor                 // what stands in <> behind a descriptor's number
	partWord                       // a number, a constant, a pointer, with the field's name before it
	partEnd                        // the closing parenthesis
)

// part is one piece of a call's arguments.
type part struct {
	kind     partKind
	arg      int // which argument, from 0
	item     int // which element of it, where it is an array
	from, to int // where it stands, without quotes or <>
	cut      bool
}

// eachPart calls f for every piece of a call's arguments until f returns false.
// It never fails: what it cannot make sense of is words.
func eachPart(args []byte, f func(part) bool) { eachPartFrom(args, 0, f) }

// eachPartFrom begins inside as many braces as depth says.
func eachPartFrom(args []byte, depth int, f func(part) bool) {
	arg, item, word := 0, 0, 0
	for i := 0; i < len(args); {
		p := part{arg: arg, item: item, from: word, to: i}
		switch c := args[i]; {
		case c == '"':
			p.kind, p.from, p.to = partString, i+1, stringEnd(args, i+1)
			i = min(p.to+1, len(args))
			if bytes.HasPrefix(args[i:], []byte("...")) {
				p.cut = true
				i += 3
			}
			word = i
		case c == '<' && opensDescriptor(args, i):
			p.kind, p.from, p.to = partDescriptor, i+1, descriptorEnd(args, i+1)
			i = min(p.to+1, len(args))
			word = i
		case c == '(' || c == '[' || c == '{':
			depth++
			i++
			word = i
			continue
		case c == ')' && depth == 0:
			if word < i && !f(part{kind: partWord, arg: arg, item: item, from: word, to: i}) {
				return
			}
			f(part{kind: partEnd, arg: arg, from: i, to: i})
			return
		case c == ',' || c == ' ' || c == ')' || c == ']' || c == '}':
			p.kind = partWord
			word = i + 1
			i++
			if p.from < p.to && !f(p) {
				return
			}
			switch {
			case c == ',' && depth == 0:
				arg, item = arg+1, 0
			case c == ',' && depth == 1:
				item++
			case c != ',' && c != ' ':
				depth--
			}
			continue
		default:
			i++
			continue
		}
		if !f(p) {
			return
		}
	}
	if word < len(args) {
		f(part{kind: partWord, arg: arg, item: item, from: word, to: len(args)})
	}
}

// stringEnd finds the closing quote. With -xx no quote stands inside.
func stringEnd(args []byte, from int) int {
	if n := bytes.IndexByte(args[from:], '"'); n >= 0 {
		return from + n
	}
	return len(args)
}

// opensDescriptor tells "3</x>" and "AT_FDCWD</x>" from "<unfinished" and "1<<2".
func opensDescriptor(args []byte, i int) bool {
	if i == 0 || i+1 == len(args) || args[i+1] == '<' {
		return false
	}
	return args[i-1] >= '0' && args[i-1] <= '9' || bytes.HasSuffix(args[:i], []byte("AT_FDCWD"))
}

// descriptorEnd finds the ">" that closes a descriptor's text: not that of an
// arrow, not that of a "<char 1:3>" inside, not one in quotes.
func descriptorEnd(args []byte, from int) int {
	depth := 0
	for i := from; i < len(args); i++ {
		switch args[i] {
		case '"':
			i = stringEnd(args, i+1)
		case '<':
			depth++
		case '>':
			switch {
			case args[i-1] == '-':
			case depth == 0:
				return i
			default:
				depth--
			}
		}
	}
	return len(args)
}

// unhex decodes \xNN where it stands and returns the shorter text. Other bytes stay.
func unhex(b []byte) []byte {
	n := 0
	for i := 0; i < len(b); n++ {
		if i+3 < len(b) && b[i] == '\\' && b[i+1] == 'x' {
			hi, lo := nibble(b[i+2]), nibble(b[i+3])
			if hi < 16 && lo < 16 {
				b[n] = hi<<4 | lo
				i += 4
				continue
			}
		}
		b[n] = b[i]
		i++
	}
	return b[:n]
}

func nibble(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}
