// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
)

const childEnv = "VMCRED_TEST_AUDIT_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(appendForEver(dir))
	}
	os.Exit(m.Run())
}

// appendForEver says each record's reason when it is durable.
func appendForEver(dir string) int {
	f, err := os.Open(dir)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	l := New(f, "audit.log", Options{MaxSize: 20000})
	for i := 0; ; i++ {
		reason := fmt.Sprintf("%d-%d", os.Getpid(), i)
		if err := l.Append(context.Background(), Entry{Op: Release, Reason: reason}, Entry{Op: Release, Reason: reason + "b"}); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(reason)
	}
}

func openDir(t *testing.T) *os.File {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestKills: several processes append, and are killed at any moment, again and again.
func TestKills(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	dir := openDir(t)
	k := first(t, osDisk{dir})
	acked := map[string]bool{}
	for round := range rounds {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for n := range 3 {
			wg.Go(func() {
				for _, line := range runAndKill(t, dir.Name(), 1+(round*3+n)%17) {
					mu.Lock()
					acked[line] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	if err := New(dir, "audit.log", Options{}).Append(t.Context(), Entry{Op: Release}); err != nil {
		t.Fatal(err)
	}
	rep := wantWhole(t, osDisk{dir}, Check{Key: k})
	if rep.Keyed != rep.Records {
		t.Errorf("%d of %d records carry the key's MAC", rep.Keyed, rep.Records)
	}
	there := map[string]int{}
	for _, r := range all(t, osDisk{dir}) {
		there[r.Reason]++
	}
	for reason := range acked {
		if there[reason] != 1 || there[reason+"b"] != 1 {
			t.Errorf("%s was acknowledged, and is there %d times", reason, there[reason])
		}
	}
	t.Logf("%d records in %d files, %d acknowledged", rep.Records, rep.Files, 2*len(acked))
}

// runAndKill kills the process when it has said so many lines, in the middle of the next.
func runAndKill(t *testing.T, dir string, lines int) []string {
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Error(err)
		return nil
	}
	var said []string
	for in := bufio.NewScanner(out); in.Scan(); {
		if !strings.Contains(in.Text(), "-") || strings.Contains(in.Text(), " ") {
			t.Errorf("a process says: %s", in.Text())
			break
		}
		said = append(said, in.Text())
		if len(said) == lines {
			_ = c.Process.Kill()
		}
	}
	_ = c.Wait() // it was killed
	return said
}

// TestShareASync: all that wait for one batch share the next.
func TestShareASync(t *testing.T) {
	d := newMemDisk(1)
	l := newLog(d, "audit.log", Options{})
	if err := l.Append(t.Context(), Entry{Op: Release}); err != nil {
		t.Fatal(err)
	}
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.gate = func() { once.Do(func() { close(reached); <-goOn }) }
	const others = 99
	results := make(chan error, others+1)
	add := func() { results <- l.Append(t.Context(), Entry{Op: Release}) }
	go add()
	<-reached
	for range others {
		go add()
	}
	for {
		l.mu.Lock()
		n := len(l.queue)
		l.mu.Unlock()
		if n == others {
			break
		}
	}
	before := d.syncs
	close(goOn)
	for range others + 1 {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
	if n := d.syncs - before; n != 6 { // the records, the new key, the old one's end: twice
		t.Errorf("%d syncs for %d requests, want 6", n, others+1)
	}
	if rep := wantWhole(t, d, Check{}); rep.Records != others+3 {
		t.Errorf("%d records", rep.Records)
	}
}

// TestAbandoned: who does not wait any more has no record later.
func TestAbandoned(t *testing.T) {
	d := newMemDisk(1)
	l := newLog(d, "audit.log", Options{Wait: time.Minute})
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.gate = func() { once.Do(func() { close(reached); <-goOn }) }
	result := make(chan error)
	go func() { result <- l.Append(t.Context(), Entry{Op: Release, Reason: "first"}) }()
	<-reached
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Append(ctx, Entry{Op: Release, Reason: "abandoned"}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
	close(goOn)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	for _, r := range all(t, d) {
		if r.Reason == "abandoned" {
			t.Error("it is on record")
		}
	}
}

// TestLockedByAnother: a process that hangs with the lock is waited for, and named.
func TestLockedByAnother(t *testing.T) {
	dir := openDir(t)
	l := New(dir, "audit.log", Options{Wait: 2 * time.Second})
	if err := l.Append(t.Context(), Entry{Op: Release}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir.Name(), "audit.log.key"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	err = l.Append(t.Context(), Entry{Op: Release, Reason: "no"})
	if want := fmt.Sprintf("process %d keeps it locked", os.Getpid()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %q", err, want)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	l.o.Wait = time.Minute
	if err := l.Append(t.Context(), Entry{Op: Release}); err != nil {
		t.Error(err)
	}
}

// TestNotOurs: files that others can write, read or have put there are refused.
func TestNotOurs(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"is a link": func(p string) error {
			return errors.Join(os.Rename(p, p+"x"), os.Symlink(p+"x", p))
		},
		"has mode 0640":      func(p string) error { return os.Chmod(p, 0o640) },
		"not a regular file": func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) },
	} {
		for _, file := range []string{"audit.log", "audit.log.key"} {
			dir := openDir(t)
			l := New(dir, "audit.log", Options{})
			err := l.Append(t.Context(), Entry{Op: Release})
			if err == nil {
				err = spoil(filepath.Join(dir.Name(), file))
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Append(t.Context(), Entry{Op: Release}); err == nil || !strings.Contains(err.Error(), file+" ") || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v, want %q", file, err, name)
			}
		}
	}
}

// TestModes: all files are their owner's alone, whatever the umask.
func TestModes(t *testing.T) {
	dir := openDir(t)
	l := New(dir, "audit.log", Options{MaxSize: 1})
	for range 3 {
		if err := l.Append(t.Context(), Entry{Op: Release}); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if len(entries) != 4 {
		t.Errorf("%v, want two full files, the log and its key", entries)
	}
}

// TestNothingIsHeldOpen between two batches.
func TestNothingIsHeldOpen(t *testing.T) {
	dir := openDir(t)
	l := New(dir, "audit.log", Options{})
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	for range 5 {
		if err := l.Append(t.Context(), Entry{Op: Release}); err != nil {
			t.Fatal(err)
		}
	}
	if now := count(); now != before {
		t.Errorf("%d descriptors, before there were %d", now, before)
	}
}

// TestDigest: the same for the same value under one name of one VM, and no other.
func TestDigest(t *testing.T) {
	dir := openDir(t)
	l := New(dir, "audit.log", Options{})
	value := func(s string) *secret.Value {
		v, err := secret.Make(len(s), func(b []byte) (int, error) { return copy(b, s), nil })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Wipe)
		return v
	}
	entry := func(vm, host, v string) Entry {
		return Entry{Op: Release, VM: vm, Credential: &Credential{Host: host, Bytes: len(v)}, Value: value(v)}
	}
	if err := l.Append(t.Context(), entry("a", "x", "v"), entry("a", "x", "w"), entry("a", "y", "v"), entry("b", "x", "v")); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), entry("a", "x", "v")); err != nil {
		t.Fatal(err)
	}
	rs := all(t, osDisk{dir})[1:]
	if rs[0].Digest != rs[4].Digest || len(rs[0].Digest) != 64 {
		t.Errorf("the same value: %s, %s", rs[0].Digest, rs[4].Digest)
	}
	for _, r := range rs[1:4] {
		if r.Digest == rs[0].Digest {
			t.Errorf("%+v has the digest of another", r)
		}
	}
	wiped := entry("a", "x", "v")
	wiped.Value.Wipe()
	if err := l.Append(t.Context(), wiped); !errors.Is(err, secret.ErrWiped) {
		t.Errorf("a wiped value: %v", err)
	}
}

// TestHead: the callback knows the log's end.
func TestHead(t *testing.T) {
	dir := openDir(t)
	var got []Head
	l := New(dir, "audit.log", Options{Head: func(h Head) { got = append(got, h) }})
	for range 2 {
		if err := l.Append(t.Context(), Entry{Op: Release}); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != 2 || got[0].Seq != 2 || got[1].Seq != 3 {
		t.Fatalf("heads: %v", got)
	}
	wantWhole(t, osDisk{dir}, Check{Heads: []Known{{got[0], "it"}, {got[1], "it"}}})
}

// TestFollow sees what is added, also in the file after the next.
func TestFollow(t *testing.T) {
	dir := openDir(t)
	l := New(dir, "audit.log", Options{MaxSize: 1500})
	add := func() {
		if err := l.Append(t.Context(), Entry{Op: Release}); err != nil {
			t.Error(err)
		}
	}
	add()
	tick := make(chan time.Time)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seqs := make(chan uint64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for line, err := range NewReader(dir, "audit.log").Follow(ctx, tick) {
			if err != nil || line.Err != nil {
				t.Error(line, err)
				return
			}
			seqs <- line.Record.Seq
		}
	}()
	want := uint64(1)
	for range 12 {
		for head := all(t, osDisk{dir}); want <= uint64(len(head)); want++ {
			for got := uint64(0); got == 0; {
				select {
				case got = <-seqs:
				case tick <- time.Time{}:
				case <-done:
					t.Fatal("it ended")
				}
				if got != 0 && got != want {
					t.Fatalf("record %d, want %d", got, want)
				}
			}
		}
		add()
	}
	cancel()
	for {
		select {
		case <-seqs:
			continue
		case <-done:
		}
		break
	}
}

func TestNoLog(t *testing.T) {
	dir := openDir(t)
	if _, err := NewReader(dir, "audit.log").Verify(t.Context(), Check{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := NewReader(dir, "audit.log").Position(); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func BenchmarkBatchOfFive(b *testing.B) {
	dir, err := os.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer dir.Close()
	l := New(dir, "audit.log", Options{})
	for b.Loop() {
		e := Entry{Op: Release, VM: "test-vm", Credential: &Credential{Host: "host-api-key", Guest: "HOST_API_KEY", Bytes: 44, Channel: "smbios"}}
		if err := l.Append(b.Context(), e, e, e, e, e); err != nil {
			b.Fatal(err)
		}
	}
}

// TestOneOfMany: a request that cannot be recorded keeps no other from it.
func TestOneOfMany(t *testing.T) {
	d := newMemDisk(1)
	l := newLog(d, "audit.log", Options{Wait: time.Minute})
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.gate = func() { once.Do(func() { close(reached); <-goOn }) }
	results := make(chan error, 3)
	go func() { results <- l.Append(t.Context(), Entry{Op: Release, Reason: "first"}) }()
	<-reached
	wiped, err := secret.Make(1, func([]byte) (int, error) { return 1, nil })
	if err != nil {
		t.Fatal(err)
	}
	wiped.Wipe()
	bad := make(chan error, 1)
	go func() { bad <- l.Append(t.Context(), Entry{Op: Release, Reason: "bad", Value: wiped}) }()
	go func() { results <- l.Append(t.Context(), Entry{Op: Release, Reason: "good"}) }()
	for n := 0; n < 2; {
		l.mu.Lock()
		n = len(l.queue)
		l.mu.Unlock()
	}
	close(goOn)
	if err := <-bad; !errors.Is(err, secret.ErrWiped) {
		t.Errorf("the bad one: %v", err)
	}
	for range 2 {
		if err := <-results; err != nil {
			t.Errorf("another one: %v", err)
		}
	}
	if rs := all(t, d); len(rs) != 3 || rs[2].Reason != "good" {
		t.Errorf("%d records", len(rs))
	}
}
