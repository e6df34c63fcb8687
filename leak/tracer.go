// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"strconv"
	"strings"
)

// Unreadable is the needle's name in a finding about bytes that strace could
// not read, as those in memfd_secret(2) pages: it cannot tell which value they
// are, but pages that even a debugger may not read hold nothing else.
const Unreadable = "(memory that cannot be read)"

// dataArg says which argument of a call holds the bytes that go to the
// descriptor in its first one; -1: they are where "iov_base=" stands.
func dataArg(name string) (arg int, ok bool) {
	switch name {
	case "write", "pwrite64", "sendto":
		return 1, true
	case "writev", "pwritev", "pwritev2", "sendmsg", "sendmmsg", "vmsplice", "process_vm_writev":
		return -1, true
	}
	return 0, false
}

// inKernel lists the calls that move bytes which no argument shows, with the
// argument that says where to.
func inKernel(name string) (to int, ok bool) {
	switch name {
	case "splice", "copy_file_range":
		return 2, true
	case "tee":
		return 1, true
	case "sendfile", "io_uring_setup":
		return 0, true
	}
	return 0, false
}

// tracedCalls are the calls strace is asked for. A "?" lets an architecture lack one.
func tracedCalls() string {
	return "?" + strings.Join([]string{
		"execve", "execveat", "clone", "clone3", "fork", "vfork",
		"write", "pwrite64", "sendto", "writev", "pwritev", "pwritev2", "sendmsg", "sendmmsg", "vmsplice", "process_vm_writev",
		"splice", "copy_file_range", "tee", "sendfile", "io_uring_setup", "mmap",
		"open", "openat", "openat2", "creat", "mkdir", "mkdirat", "mknod", "mknodat", "rename", "renameat", "renameat2",
		"link", "linkat", "symlink", "symlinkat", "setxattr", "lsetxattr", "fsetxattr", "memfd_create", "bind", "connect",
		"mount", "fsconfig", "prctl", "add_key", "request_key", "keyctl", "msgsnd", "mq_timedsend", "sethostname", "setdomainname",
	}, ",?")
}

// tracer searches the lines of one trace.
type tracer struct {
	s       *Search
	count   Searched
	unknown int
	exes    map[int]string
	exec    map[int]string    // what an execve that has not ended yet is to run
	tails   map[string][]byte // the last bytes written to each target
	joint   []byte
}

// maxTails bounds how many targets are remembered for values that are written in pieces.
const maxTails = 4096

func newTracer(s *Search) *tracer {
	return &tracer{s: s, exes: map[int]string{}, exec: map[int]string{}, tails: map[string][]byte{}}
}

// line searches one line and wipes nothing: it is the caller's.
func (t *tracer) line(line []byte) error {
	l := parseLine(line)
	switch l.kind {
	case lineUnknown:
		t.unknown++
		return nil
	case lineEvent:
		return nil
	case lineResumed:
		t.ended(l)
	}
	if l.kind == lineCall && strings.HasPrefix(l.name, "exec") {
		return t.execve(l)
	}
	if l.kind == lineCall {
		t.ended(l)
	}
	if arg, ok := dataArg(l.name); ok {
		return t.write(l, arg)
	}
	t.unseen(l)
	return t.names(l)
}

// ended follows which process runs what.
func (t *tracer) ended(l traceLine) {
	switch l.name {
	case "clone", "clone3", "fork", "vfork":
		if child := l.number(); child > 0 && t.exes[child] == "" {
			t.exes[child] = t.exes[l.pid]
		}
	case "execve", "execveat":
		if !l.failed() {
			t.exes[l.pid] = t.exec[l.pid]
		}
		delete(t.exec, l.pid)
	}
}

func (t *tracer) execve(l traceLine) error {
	t.count.Execs++
	argv := 1
	if l.name == "execveat" {
		argv = 2
	}
	var path string
	var err error
	eachPart(l.args, func(p part) bool {
		if p.kind == partWord && unreadable(l, p, "") && p.arg >= argv && p.arg <= argv+1 {
			t.s.found(&form{needle: Unreadable, name: "unreadable"}, 0, t.place(l, Place{Kind: execKind(p.arg - argv)}))
		}
		if p.kind != partString {
			return true
		}
		text := t.text(l, p)
		place := Place{Kind: Name}
		switch {
		case p.arg == argv-1:
			path = t.s.needles.redactBytes(text)
		case p.arg == argv:
			place = Place{Kind: ExecArgv, Detail: "argument " + strconv.Itoa(p.item)}
		case p.arg == argv+1:
			name, _, _ := bytes.Cut(text, []byte{'='})
			place = Place{Kind: ExecEnviron, Detail: "variable " + string(name[:min(len(name), 255)])}
		}
		err = t.find(l, text, place)
		return err == nil
	})
	t.exec[l.pid] = path
	if len(l.result) > 0 {
		t.ended(l)
	}
	return err
}

func execKind(n int) Kind {
	if n == 0 {
		return ExecArgv
	}
	return ExecEnviron
}

// write searches bytes that go to a descriptor, also where they continue what
// was written to the same target before.
func (t *tracer) write(l traceLine, arg int) error {
	if l.kind == lineCall {
		t.count.Writes++
	}
	place := Place{Kind: Write, Target: ToUnknown}
	var err error
	eachPart(l.args, func(p part) bool {
		switch {
		case p.kind == partDescriptor && p.arg == 0 && p.item == 0:
			place.Target, place.Path = target(bytes.Clone(l.args[p.from:p.to]))
		case p.kind == partWord && arg == p.arg && unreadable(l, p, ""), p.kind == partWord && arg < 0 && unreadable(l, p, "iov_base="),
			p.kind == partWord && arg < 0 && p.arg == 1 && unreadable(l, p, ""):
			t.s.found(&form{needle: Unreadable, name: "unreadable"}, 0, t.place(l, place))
		case p.kind == partString && (p.arg == arg || arg < 0 && bytes.HasSuffix(l.args[:p.from-1], []byte("iov_base="))):
			text := t.text(l, p)
			t.count.Written += int64(len(text))
			if err = t.find(l, text, place); err == nil {
				err = t.join(l, text, place)
			}
		case p.kind == partString:
			err = t.find(l, t.text(l, p), Place{Kind: Name})
		}
		return err == nil
	})
	return err
}

// unreadable tells a pointer that strace shows where it should show what it points to.
func unreadable(l traceLine, p part, prefix string) bool {
	word, ok := bytes.CutPrefix(l.args[p.from:p.to], []byte(prefix))
	return ok && bytes.HasPrefix(word, []byte("0x")) && !bytes.HasPrefix(l.result, []byte("-1 EFAULT"))
}

// join searches the seam between what was written to a target before and now.
func (t *tracer) join(l traceLine, text []byte, place Place) error {
	margin := t.s.needles.table.margin
	key := string(place.Target) + place.Path
	tail := t.tails[key]
	t.joint = append(append(t.joint[:0], tail...), text[:min(len(text), margin)]...)
	seam := int64(len(tail))
	err := t.s.needles.all(t.joint, func(f *form, from, to int64) {
		if from < seam && to > seam {
			t.s.found(f, 0, t.place(l, place))
		}
	})
	clear(t.joint)
	if tail == nil {
		if len(t.tails) >= maxTails {
			t.forget()
			t.s.skip("value written in pieces to one of very many targets", "the pieces before were forgotten", place.Path)
		}
		tail = make([]byte, 0, 2*margin)
	}
	if len(text) >= margin {
		tail = append(tail[:0], text[len(text)-margin:]...)
	} else {
		if over := len(tail) + len(text) - margin; over > 0 {
			tail = tail[:copy(tail, tail[over:])]
		}
		tail = append(tail, text...)
	}
	t.tails[key] = tail
	return err
}

func (t *tracer) forget() {
	for key, tail := range t.tails {
		clear(tail[:cap(tail)])
		delete(t.tails, key)
	}
}

// names searches every string of a call that is not about bytes.
func (t *tracer) names(l traceLine) error {
	var err error
	eachPart(l.args, func(p part) bool {
		if p.kind == partString {
			t.count.Paths++
			text := t.text(l, p)
			if err = t.find(l, text, Place{Kind: Name}); err == nil && l.threadName(p) {
				err = t.s.needles.piece(text, t.namer(l, text))
			}
		}
		return err == nil
	})
	return err
}

// unseen says when bytes move in a way that no argument shows.
func (t *tracer) unseen(l traceLine) {
	if l.kind != lineCall || l.failed() && len(l.result) > 0 {
		return
	}
	to, moves := inKernel(l.name)
	var words [8]string
	var toTarget Target
	var path string
	eachPart(l.args, func(p part) bool {
		switch {
		case p.kind == partWord && p.arg < len(words):
			words[p.arg] += string(l.args[p.from:p.to])
		case p.kind == partDescriptor && (moves && p.arg == to || l.name == "mmap"):
			toTarget, path = target(bytes.Clone(l.args[p.from:p.to]))
		}
		return true
	})
	switch {
	case moves:
		t.s.skip(l.name+" to a "+string(toTarget), "no argument shows the bytes", path)
	case l.name == "mmap" && toTarget == ToFile && strings.Contains(words[2], "PROT_WRITE") && strings.Contains(words[3], "MAP_SHARED"):
		t.s.skip("write through a shared mapping of a file", "no system call shows the bytes", path)
	}
}

// text decodes a string where it stands.
func (t *tracer) text(l traceLine, p part) []byte {
	if p.cut && !l.threadName(p) {
		t.s.skip("end of a very long string", "strace cut it", l.name)
	}
	return unhex(l.args[p.from:p.to])
}

func (t *tracer) find(l traceLine, text []byte, place Place) error {
	if place.Kind == Name {
		return t.s.needles.all(text, t.namer(l, text))
	}
	return t.s.needles.all(text, func(f *form, from, _ int64) { t.s.found(f, from, t.place(l, place)) })
}

// namer records what is found in a name.
func (t *tracer) namer(l traceLine, text []byte) func(f *form, from, to int64) {
	return func(f *form, from, _ int64) {
		name := t.s.needles.redactBytes(text)
		t.s.found(f, from, t.place(l, Place{Kind: Name, Path: name[:min(len(name), 255)]}))
	}
}

// place completes a place with who is there.
func (t *tracer) place(l traceLine, p Place) Place {
	p.PID, p.Exe, p.Syscall = l.pid, t.exes[l.pid], l.name
	return p
}

// target tells what a descriptor's text stands for: a path in hex, perhaps with
// a "<char 1:3>" behind it, or "TCP:[127.0.0.1:1->127.0.0.1:2]".
func target(text []byte) (Target, string) {
	text, device, isDevice := bytes.Cut(text, []byte("<"))
	hex := bytes.HasPrefix(text, []byte(`\x`))
	if !hex && isDevice { // an arrow's or quote's: not a device
		text = append(append(text, '<'), device...)
	}
	path := string(unhex(text))
	switch {
	case !hex:
		return ToSocket, path
	case isDevice:
		return ToDevice, path
	case strings.HasPrefix(path, "/memfd:"):
		return ToMemfd, path
	case strings.HasPrefix(path, "/"):
		return ToFile, path
	case strings.HasPrefix(path, "pipe:"):
		return ToPipe, path
	case strings.HasPrefix(path, "socket:"):
		return ToSocket, path
	}
	return ToOther, path
}
