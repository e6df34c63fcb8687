// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
)

// TestMain is also the program whose memory is searched: it reads a value from
// its standard input, keeps it as told and says so.
func TestMain(m *testing.M) {
	if how := os.Getenv("LEAK_TEST_KEEP"); how != "" {
		if err := keep(how); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

var kept any

func keep(how string) error {
	in := make([]byte, 44)
	if to, ok := strings.CutPrefix(how, "write-"); ok {
		return writeOut(to)
	}
	if how == "search" {
		return searcher()
	}
	if how == "secret" {
		v, err := secret.Make(44, func(b []byte) (int, error) { return io.ReadFull(os.Stdin, b) })
		if err != nil {
			return err
		}
		kept = v
	} else if _, err := io.ReadFull(os.Stdin, in); err != nil {
		return err
	}
	switch how {
	case "thread name":
		return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.SliceData(append(in, 0)))), 0, 0, 0)
	case "heap":
		kept = [][]byte{append([]byte("1"), in...), append([]byte("22"), in...)}
		clear(in)
	case "hex":
		kept = hex.EncodeToString(in)
		clear(in)
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	fmt.Println(kept == nil)
	return err
}

// writeOut writes a value from its locked pages to a file or a memfd.
func writeOut(to string) error {
	v, err := secret.Make(44, func(b []byte) (int, error) { return io.ReadFull(os.Stdin, b) })
	if err != nil {
		return err
	}
	rope := secret.Rope{{Text: "io.systemd.credential:A="}, {Secret: v}}
	if to == "memfd" {
		m, err := secret.NewMemfd("vmcred-test", rope)
		if err != nil {
			return err
		}
		return m.Release()
	}
	f, err := os.Create("leaked")
	if err != nil {
		return err
	}
	_, err = rope.WriteTo(f)
	return errors.Join(err, f.Close())
}

// searcher searches for a value everywhere, finds it, and then waits.
func searcher() error {
	v, err := secret.Make(44, func(b []byte) (int, error) { return io.ReadFull(os.Stdin, b) })
	if err != nil {
		return err
	}
	n, err := NewNeedles(Needle{Name: "token", Value: v})
	if err != nil {
		return err
	}
	s, ctx, dir := New(n), context.Background(), os.Getenv("LEAK_TEST_DIR")
	_, serr := s.Strace(ctx, Trace{Argv: []string{"sh", "-c", `read -r v <secret; echo "$v" >written; cat secret`}, Dir: dir})
	m, merr := s.Memory(ctx, os.Getppid())
	_, werr := s.Watch(ctx, time.Millisecond, func() error { return nil })
	err = errors.Join(serr, merr, werr, s.Processes(ctx), s.Descriptors(ctx), s.KernelLog(ctx),
		s.Files(ctx, Files{Roots: []string{dir}}))
	if r := s.Report(); err == nil && (r.Places < 3 || m.Total() == 0) {
		err = fmt.Errorf("too little found: %+v", r)
	}
	kept = n
	fmt.Println("ready")
	if err == nil {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	return err
}

// A searcher that holds what it searches for would be found by the next search.
func TestTheSearcherItselfHoldsNoValue(t *testing.T) {
	v, dir := token(), t.TempDir()
	if err := file("secret", v+"\n")(dir); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LEAK_TEST_DIR", dir)
	s := search(t, v)
	m, err := s.Memory(context.Background(), keeper(t, "search", v))
	if err != nil {
		t.Fatal(err)
	}
	if m.Total() != 0 || m.Bytes < 1<<20 {
		t.Errorf("%+v", m)
	}
}

func keeper(t *testing.T, how, value string) int {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), "LEAK_TEST_KEEP="+how)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = c.Wait() })
	if _, err := io.WriteString(in, value); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return c.Process.Pid
}

func TestMemory(t *testing.T) {
	v := token()
	s := search(t, v)
	for how, want := range map[string]map[string]int{
		"heap":   {"plain": 2},
		"hex":    {"hex": 2}, // EncodeToString makes a slice and then a string
		"secret": {},
	} {
		t.Run(how, func(t *testing.T) {
			m, err := s.Memory(context.Background(), keeper(t, how, v))
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]int{}
			for _, c := range m.Copies {
				got[c.Form] = c.Count
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%v, want %v: %+v", got, want, m)
			}
			if m.Bytes < 1<<20 {
				t.Errorf("only %d bytes were searched", m.Bytes)
			}
			if kind := arenaKind(t); how == "secret" && kind == "memfd_secret" && m.Unreadable == 0 {
				t.Errorf("the pages of %s are not counted as unreadable", kind)
			}
		})
	}
	if _, err := s.Memory(context.Background(), os.Getpid()); !errors.Is(err, ErrOwnMemory) {
		t.Errorf("own memory: %v", err)
	}
	if _, err := s.Memory(context.Background(), 1<<30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such process: %v", err)
	}
}

func arenaKind(t *testing.T) string {
	t.Helper()
	a := secret.NewArena()
	defer a.Close()
	if _, err := a.Make(1, func([]byte) (int, error) { return 1, nil }); err != nil {
		t.Fatal(err)
	}
	return a.Kind()
}
