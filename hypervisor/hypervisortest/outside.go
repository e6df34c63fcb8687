// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/vm"
)

// hurry is the deadline of a start that fails only by it.
const hurry = time.Second

func digest(s string) probe.Digest { return sha256.Sum256([]byte(s)) }

// needles are the forms in which a value could be found.
func needles(it item) map[string][]byte {
	v := []byte(it.value)
	return map[string][]byte{
		"plain":  v,
		"base64": []byte(base64.StdEncoding.EncodeToString(v)),
		"hex":    []byte(hex.EncodeToString(v)),
	}
}

// search lists which secret is in b, and in which form.
func search(where string, b []byte, items []item) []string {
	var faults []string
	for _, it := range items {
		if it.kind != credential.Secret || len(it.value) < 8 {
			continue
		}
		for form, n := range needles(it) {
			if bytes.Contains(b, n) {
				faults = append(faults, fmt.Sprintf("%s is in %s (%s)", it.label(), where, form))
			}
		}
	}
	return faults
}

func wantNone(t *testing.T, faults []string) {
	t.Helper()
	for _, f := range faults {
		t.Error(f)
	}
}

// searchDescriptors searches what is readable behind each descriptor, and
// returns how many memory files there were. What cannot be read cannot be
// vouched for, so it is a fault, too.
func searchDescriptors(t *testing.T, dir string, items []item) (memfds int, faults []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		target, err := os.Readlink(path)
		if err != nil || strings.HasPrefix(target, "anon_inode:") {
			continue // the listing itself, closed by now; or nothing that has content
		}
		if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
			continue
		}
		if strings.HasPrefix(target, "/memfd:") {
			memfds++
		}
		b, err := readSome(path)
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s (%s): %v", path, target, err))
		}
		faults = append(faults, search(path+" "+target, b, items)...)
	}
	return memfds, faults
}

func readSome(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<20))
}

// longest is a value for the oldest guest, too long for SMBIOS where there is
// another channel.
func (s *suite) longest() int {
	if _, files := channels(s.offers()); files != nil {
		return 20_000
	}
	return 1_600
}

// testNoValueOutside looks at the VMM once it runs: no value in its arguments,
// its environment, or in any file or memory file it holds open.
func (s *suite) testNoValueOutside(t *testing.T) {
	items := append(three(), filled(strings.Repeat("F", 28), s.longest())) // by fw_cfg, if there is one
	last := &items[len(items)-1]
	last.value = strings.Repeat("0123456789abcdef", len(last.value)/16)
	g := s.boot(t, items, probe.WordWait)
	dir := fmt.Sprintf("/proc/%d/", g.PID())
	for _, name := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(dir + name)
		if err != nil {
			t.Fatal(err)
		}
		wantNone(t, search(dir+name, b, items))
	}
	memfds, faults := searchDescriptors(t, dir+"fd", items)
	wantNone(t, faults)
	t.Logf("the VMM has %d memory files open", memfds)
	_, faults = searchDescriptors(t, "/proc/self/fd", items)
	wantNone(t, faults)
	g.console.await(t, probe.Last)
	if err := g.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.finish(t)
	s.wantExact(t, g, items)
	wantNone(t, search("the log", g.log.bytes(), items))
	wantNone(t, search("the console", g.console.bytes(), items))
}

// testCommand: what Command shows is what runs.
func (s *suite) testCommand(t *testing.T) {
	l, g := s.launchOf(t, three(), probe.WordHang, credentialsOldest)
	s.start(t, l, g)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	_ = g.Kill()
	g.finish(t)
	got := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	want := s.driver.Command(l.Spec, s.info, l.Plan)
	if len(got) != len(want) {
		t.Fatalf("runs with %q, Command says %q", got, want)
	}
	for i := range want {
		if !matches(got[i], want[i]) {
			t.Errorf("argument %d is %q, Command says %q", i, got[i], want[i])
		}
	}
}

// matches compares an argument with one in which "<fd>" stands for a number.
func matches(got, want string) bool {
	parts := strings.Split(want, "<fd>")
	for i, p := range parts {
		rest, ok := strings.CutPrefix(got, p)
		if !ok {
			return false
		}
		got = rest
		if i < len(parts)-1 {
			trimmed := strings.TrimLeft(got, "0123456789")
			if trimmed == got {
				return false
			}
			got = trimmed
		}
	}
	return got == ""
}

// testWithoutCredentials: a VM that gets none has the same arguments but for
// the options that carry values, and nothing of ours is in it.
func (s *suite) testWithoutCredentials(t *testing.T) {
	g := s.boot(t, nil, "")
	g.finish(t)
	s.wantExact(t, g, nil)

	command := func(spec *vm.Spec, items []item) []string {
		set, err := newSet(items)
		if err != nil {
			t.Fatal(err)
		}
		defer set.Close()
		plan, refusals := delivery.Make(s.driver.Offers(spec, s.info), delivery.Guest{Systemd: 252}, set.Metas())
		if len(refusals) > 0 {
			t.Fatal(refusals)
		}
		return s.driver.Command(spec, s.info, plan)
	}
	spec := s.spec("")
	with, without := command(spec, append(three(), filled("F", s.longest()))), command(spec, nil)
	if len(with) <= len(without) && s.WithoutValues != nil {
		t.Errorf("with credentials %q, without %q: nothing carries them", with, without)
	}
	if s.WithoutValues != nil {
		with = s.WithoutValues(with)
	}
	if strings.Join(with, "\x00") != strings.Join(without, "\x00") {
		t.Errorf("with credentials %q\nwithout %q", with, without)
	}
}

// descriptors are the targets of this process's open descriptors.
func descriptors(t *testing.T) []string {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			out = append(out, target)
		}
	}
	return out
}

// processExists is true for a zombie, too: nobody has waited for it.
func processExists(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil
}

// noChildren: this process has no child, alive or not waited for.
func noChildren(t *testing.T) {
	t.Helper()
	for _, c := range children(t) {
		t.Errorf("left running: %s", c)
	}
}

func children(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, path := range list {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state ppid: the name may hold anything, a ")" too.
		rest := string(b[bytes.LastIndexByte(b, ')')+1:])
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			out = append(out, string(b[:min(len(b), 80)]))
		}
	}
	return out
}
