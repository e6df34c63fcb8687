// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"bufio"
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"
)

// subject is what a process of its own does with a value that it reads from its
// standard input, step by step; after each step its memory is searched.
type subject struct {
	arena *Arena
	value *Value
	step  func(name string)
}

const subjectEnv = "VMCRED_TEST_SUBJECT"

func TestMain(m *testing.M) {
	if name := os.Getenv(subjectEnv); name != "" {
		if err := beSubject(name); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// subjects holds the clean roads, which must leave nothing, and controls, which must.
func subjects() map[string]func(*subject) error {
	return map[string]func(*subject) error{
		"clean": clean,
		"mlock": clean,
		"key":   cleanKey,
		"limit": limited,
		"control hash": func(s *subject) error {
			h := sha256.New()
			defer runtime.KeepAlive(h)
			defer s.step("hashed")
			return s.value.Use(func(b []byte) error {
				h.Write(b)
				h.Reset()
				return nil
			})
		},
		"control hmac key": func(s *subject) error {
			return s.value.Use(func(b []byte) error {
				h := hmac.New(sha256.New, b[:40])
				s.step("keyed")
				runtime.KeepAlive(h)
				return nil
			})
		},
		"control heap": func(s *subject) error {
			var leaked []byte
			err := s.value.Use(func(b []byte) error {
				leaked = append([]byte(nil), b[:24]...)
				return nil
			})
			s.step("copied")
			runtime.KeepAlive(leaked)
			return err
		},
	}
}

func beSubject(name string) error {
	goOn := os.NewFile(3, "go on")
	s := &subject{arena: NewArena(), step: func(name string) {
		fmt.Println("step", name)
		if _, err := goOn.Read(make([]byte, 1)); err != nil {
			os.Exit(1)
		}
	}}
	if name == "mlock" {
		s.arena.newMap = newLockedMapping
	}
	var err error
	if s.value, err = s.arena.Read(os.Stdin, 1<<20); err != nil {
		return err
	}
	return subjects()[name](s)
}

func clean(s *subject) error {
	fmt.Println("own", s.address())
	s.step("read")
	key, err := NewKey()
	if err != nil {
		return err
	}
	encoded, err := s.arena.Base64(s.value)
	if err != nil {
		return err
	}
	for _, v := range []*Value{s.value, encoded} {
		for n := range 130 { // every way the last block can be filled
			if v.Digest(key, strings.Repeat("x", n)).IsZero() {
				return ErrWiped
			}
		}
	}
	s.step("digested")
	rope := Rope{{Text: "a="}, {Secret: s.value}, {Text: ",b="}, {Secret: encoded}}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := rope.WriteTo(null); err != nil {
		return err
	}
	m, err := NewMemfd("test", rope)
	if err != nil {
		return err
	}
	if err := m.Release(); err != nil {
		return err
	}
	_ = fmt.Sprintf("%v %#v %x %s", s.value, *s.value, rope, rope)
	s.step("written and released")
	runtime.GC()
	s.step("after a collection")
	if err := s.arena.Close(); err != nil {
		return err
	}
	runtime.GC()
	s.step("closed")
	return nil
}

func cleanKey(s *subject) error {
	var key *Key
	err := s.value.Use(func(b []byte) error {
		var err error
		key, err = KeyFrom(b[:40])
		return err
	})
	if err != nil {
		return err
	}
	if s.value.Digest(key, "context").IsZero() {
		return ErrWiped
	}
	s.step("digested")
	runtime.GC()
	s.step("after a collection")
	return key.Close()
}

// address returns the mapping's first byte, for pages that can be read from outside.
func (s *subject) address() string {
	return fmt.Sprint(addressOf(s.value))
}

// addressOf returns where the mapping of a value begins.
func addressOf(v *Value) uint64 {
	return uint64(uintptr(unsafe.Pointer(&v.s.m.mem()[0])))
}

func newLockedMapping(n int) (*mapping, error) {
	mem, err := mapLocked(roundUp(n, os.Getpagesize()))
	return &mapping{mem: func() []byte { return mem }}, err
}

func TestNoCopyStaysInMemory(t *testing.T) {
	for _, name := range []string{"clean", "mlock", "key"} {
		// Without the processor's extensions other code hashes and copies.
		for _, cpu := range []string{"", "cpu.sha=off", "cpu.all=off"} {
			t.Run(name+" "+cmp.Or(cpu, "as is"), func(t *testing.T) {
				runSubject(t, name, func(step string, found []string) {
					if len(found) > 0 {
						t.Errorf("%s: %d copies: %q", step, len(found), found)
					}
				}, "GODEBUG="+cpu)
			})
		}
	}
}

func TestSearchFindsWhatIsLeft(t *testing.T) {
	for _, name := range []string{"control hash", "control hmac key", "control heap"} {
		t.Run(name, func(t *testing.T) {
			runSubject(t, name, func(step string, found []string) {
				if len(found) == 0 {
					t.Errorf("%s: nothing found", step)
				}
				t.Log(found)
			})
		})
	}
}

// runSubject starts a subject, gives it a random value and searches its memory
// after each of its steps. memfd_secret pages cannot be read from outside; locked
// ones can, and are left out as the value's home.
func runSubject(t *testing.T, name string, check func(step string, found []string), env ...string) {
	t.Helper()
	value := make([]byte, 500)
	if _, err := rand.Read(value); err != nil {
		t.Fatal(err)
	}
	goOnR, goOn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer goOn.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append([]string{subjectEnv + "=" + name}, env...)
	cmd.ExtraFiles = []*os.File{goOnR}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Wait(); err != nil {
			t.Errorf("subject %s: %v", name, err)
		}
	}()
	goOnR.Close()
	if _, err := in.Write(value); err != nil {
		t.Fatal(err)
	}
	in.Close()
	search(t, cmd.Process.Pid, newNeedles(value), out, goOn, check)
}

func search(t *testing.T, pid int, n *needles, out io.Reader, goOn io.Writer, check func(string, []string)) {
	t.Helper()
	own := map[uint64]bool{}
	steps := 0
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "own":
			address, err := strconv.ParseUint(rest, 10, 64)
			if err != nil {
				t.Error(err)
			}
			own[address] = true
		case "step":
			steps++
			if rest == "closed" {
				clear(own) // another mapping may lie there now
			}
			check(rest, n.copies(t, pid, own))
			if _, err := goOn.Write([]byte{1}); err != nil && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
		default:
			t.Errorf("the subject says: %s", lines.Text())
		}
	}
	if steps == 0 {
		t.Error("the subject made no step")
	}
}
