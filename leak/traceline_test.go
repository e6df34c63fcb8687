// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseLine(t *testing.T) {
	for line, want := range map[string]string{
		`12 write(1<\x2f\x78>(deleted), "\x61", 1) = 1`:                         `write descriptor0 "\x2f\x78" word0 "deleted" string1 "\x61" word2 "1" end "1"`,
		`12 write(1<UNIX-STREAM:[1->2,"\x2f>"]>, "\x61"..., 9 <unfinished ...>`: `write descriptor0 "UNIX-STREAM:[1->2,\"\x2f>\"]" cut1 "\x61" word2 "9"`,
		`12 <... write resumed>)             = 1`:                               `write end "1"`,
		`12 <... io_uring_setup resumed>, n=2, off={head=0}}) = 7<\x61>`:        `io_uring_setup word1 "n=2" word2 "head=0" end "7<\x61>"`,
		`12 <... sendmsg resumed>, iov_len=1}], msg_iovlen=1}, 0) = 1`:          `sendmsg word1 "iov_len=1" word1 "msg_iovlen=1" word1 "0" end "1"`,
		`12 execve("\x2f", ["\x61", "\x62"], ["\x63"]) = -1 ENOENT (No)`:        `execve string0 "\x2f" string1 "\x61" string1.1 "\x62" string2 "\x63" end "-1 ENOENT (No)"`,
		`12 write(1<\x2f\x78<char 1:3>>, 0x7f, 1) = ?`:                          `write descriptor0 "\x2f\x78<char 1:3>" word1 "0x7f" word2 "1" end "?"`,
		`12 sendmsg(5<TCPv6:[[::1]:1->[::1]:2]>, {i=[{b="\x78"}]}, 0) = 1`:      `sendmsg descriptor0 "TCPv6:[[::1]:1->[::1]:2]" string1 "\x78" word2 "0" end "1"`,
		`12 clone3({flags=1<<3} => {tid=[3]}, 88) = 3`:                          `clone3 word0 "flags=1<<3" word0 "=>" word0 "3" word1 "88" end "3"`,
		`12 vfork( <unfinished ...>`:                                            `vfork`,
		`12 +++ superseded by execve in pid 7 +++`:                              ``,
		`12 ???( <unfinished ...>`:                                              ``,
		`12 --- SIGCHLD {si_utime=0 /* 0.01 s */} ---`:                          ``,
	} {
		l := parseLine([]byte(line))
		if l.kind == lineUnknown || l.pid != 12 {
			t.Errorf("%s: unknown", line)
		}
		if got := show(l); got != want {
			t.Errorf("%s:\n got %s\nwant %s", line, got, want)
		}
	}
	for _, line := range []string{
		"", "12", "12 ", "write(1) = 1", "strace: Process 1 attached", `12 write(1<\x2f>, "\x61`, `12 ???(`, "12 write(1, 2)",
		`12 ???() = 1`, `12 ( <unfinished ...>`, `12 ???("x" <unfinished ...>`, `12 <... write resumed`, "-3 fork() = 1", "12 +++ exi", "12 write(1}, 2) = 3", "99999999999999999999 fork() = 1", "12 (1) = 1",
	} {
		if l := parseLine([]byte(line)); l.kind != lineUnknown {
			t.Errorf("%q is not unknown: %+v", line, l)
		}
	}
}

// show writes what a call was taken apart into.
func show(l traceLine) string {
	if l.kind == lineEvent {
		return ""
	}
	out := []string{l.name}
	eachPart(l.args, func(p part) bool {
		kind := map[partKind]string{partString: "string", partDescriptor: "descriptor", partWord: "word"}[p.kind]
		if p.cut {
			kind = "cut"
		}
		kind += fmt.Sprint(p.arg)
		if p.item > 0 && p.kind == partString {
			kind += fmt.Sprint(".", p.item)
		}
		text := strings.ReplaceAll(string(l.args[p.from:p.to]), `"`, `\"`)
		out = append(out, kind+` "`+text+`"`)
		return true
	})
	if len(l.result) > 0 {
		out = append(out, `end "`+string(l.result)+`"`)
	}
	return strings.Join(out, " ")
}

// hexed writes a text as strace -xx does.
func hexed(b []byte) string {
	var out strings.Builder
	for _, c := range b {
		fmt.Fprintf(&out, `\x%02x`, c)
	}
	return out.String()
}

// Whatever the other strings hold, a value in any of them is found where it is.
func TestTracedValuesAreFoundWhereTheyAre(t *testing.T) {
	v := []byte("correct horse battery staple")
	n := needles(t, v)
	rapid.Check(t, func(r *rapid.T) {
		junk := func(name string) string { return hexed(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(r, name)) }
		path := append([]byte("/"), rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(r, "path")...)
		with := junk("before") + hexed(v) + junk("after")
		lines := map[string]Place{
			fmt.Sprintf(`7 write(3<%s>(deleted), "%s", 99) = 99`, hexed(path), with):                                                                                 {Kind: Write, Target: ToFile, Path: string(path), Syscall: "write"},
			fmt.Sprintf(`7 pwritev(3<%s<block 8:1>>, [{iov_base="%s", iov_len=1}, {iov_base="%s", iov_len=9}], 2, 0 <unfinished ...>`, hexed(path), junk("a"), with): {Kind: Write, Target: ToDevice, Path: string(path), Syscall: "pwritev"},
			fmt.Sprintf(`7 sendmsg(3<UNIX:[1->2,"%s"]>, {msg_name=NULL, msg_iov=[{iov_base="%s"}], msg_iovlen=1}, 0) = 9`, hexed(path), with):                        {Kind: Write, Target: ToSocket, Path: `UNIX:[1->2,"` + string(path) + `"]`, Syscall: "sendmsg"},
			fmt.Sprintf(`7 execve("%s", ["%s", "%s"], ["%s"]) = -1 EACCES (x)`, junk("b"), junk("c"), with, junk("d")):                                               {Kind: ExecArgv, Detail: "argument 1", Syscall: "execve"},
			fmt.Sprintf(`7 execveat(3<%s>, "", ["%s"], ["%s", "A=%s"], 0) = 0`, hexed(path), junk("e"), junk("f"), with):                                             {Kind: ExecEnviron, Detail: "variable A", Syscall: "execveat"},
		}
		for line, want := range lines {
			s := New(n)
			tr := newTracer(s)
			if err := tr.line([]byte(line)); err != nil || tr.unknown != 0 {
				r.Fatalf("%s: %v, unknown %d", line, err, tr.unknown)
			}
			want.PID = 7
			if got := s.Report().Findings; len(got) != 1 || got[0].Place != want || got[0].Form != "plain" {
				r.Fatalf("%s:\n got %+v\nwant %+v", line, got, want)
			}
		}
	})
}

// Values written in any pieces to one target are found once, and not if the
// pieces go to different targets.
func TestValuesInPiecesAreFoundOnce(t *testing.T) {
	v := []byte("correct horse battery staple")
	n := needles(t, v)
	rapid.Check(t, func(r *rapid.T) {
		before := rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(r, "before")
		text := append(before, v...)
		same, apart := newTracer(New(n)), newTracer(New(n))
		split := false
		for i := 0; len(text) > 0; i++ {
			k := rapid.IntRange(1, len(text)).Draw(r, "piece")
			split = split || k < len(text) && len(text)-k < len(v)
			for tr, fd := range map[*tracer]int{same: 0, apart: i % 2} {
				line := fmt.Sprintf(`7 write(%d<%s>, "%s", %d) = %d`, fd, hexed([]byte(fmt.Sprint("/", fd))), hexed(text[:k]), k, k)
				if err := tr.line([]byte(line)); err != nil {
					r.Fatal(err)
				}
			}
			text = text[k:]
		}
		if got := same.s.Report().Findings; len(got) != 1 || got[0].Count != 1 {
			r.Fatalf("to one target: %+v", got)
		}
		if got := apart.s.Report().Findings; split && len(got) != 0 {
			r.Fatalf("to two targets: %+v", got)
		}
	})
}

func FuzzTraceLine(f *testing.F) {
	for _, line := range []string{
		`1 write(1<\x2f\x78>(deleted), "\x61\x62"..., 10) = 10`,
		`1 execve("\x2f", ["\x61", "\x62"], ["\x41=\x62"]) = 0`,
		`1 sendmsg(5<UNIX-STREAM:[1->2]>, {msg_iov=[{iov_base="\x78", iov_len=1}, {iov_base=0x7f00, iov_len=4}], msg_controllen=0}, 0) = 3`,
		`1 <... execve resumed>) = 0`, `1 vfork( <unfinished ...>`, `1 +++ exited with 0 +++`,
		`1 write(1</\x2f<char 1:3>>, "\x61", 1) = 1`, `1 mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, 3<\x2f>, 0) = 0x7f`,
	} {
		f.Add([]byte(line))
	}
	s := New(needles(f, []byte("correct horse battery staple")))
	f.Fuzz(func(t *testing.T, line []byte) {
		tr := newTracer(s)
		if err := tr.line(bytes.Clone(line)); err != nil {
			t.Fatal(err)
		}
		l := parseLine(line)
		if l.kind == lineUnknown != (tr.unknown == 1) {
			t.Errorf("%q is unknown, and not counted", line)
		}
		last := 0
		eachPart(l.args, func(p part) bool {
			if p.from < last || p.to < p.from || p.to > len(l.args) {
				t.Fatalf("%q: %+v after %d", line, p, last)
			}
			last = p.to
			return true
		})
	})
}

func FuzzMapping(f *testing.F) {
	f.Add("7f0000000000-7f0000001000 rw-p 00000000 00:01 12   /memfd:a b (deleted)")
	f.Add("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]")
	f.Fuzz(func(t *testing.T, line string) {
		if m, ok := parseMapping(line); ok && (m.name == "" || m.to <= m.from) {
			t.Errorf("%q: %+v", line, m)
		}
	})
}
