// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/broker/client"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/leak"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/store/folder"
	"github.com/vmcred/vmcred/vm"
)

// brokerEnv names the directory of a broker that is a process of its own; leakyEnv makes it
// a careless one.
const (
	brokerEnv = "VMCRED_TEST_BROKER"
	leakyEnv  = "VMCRED_TEST_LEAKY"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(brokerEnv); dir != "" {
		if err := beBroker(dir); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// careless is a store that keeps a copy of what it reads.
type careless struct {
	store.Store
	kept *[][]byte
}

type carelessSnapshot struct {
	store.Snapshot
	kept *[][]byte
}

func (c careless) Pin(ctx context.Context, refs ...store.Ref) (store.Snapshot, error) {
	s, err := c.Store.Pin(ctx, refs...)
	return carelessSnapshot{s, c.kept}, err
}

func (c carelessSnapshot) Open(ctx context.Context, a *secret.Arena, r store.Ref, file string) (*secret.Value, error) {
	v, err := c.Snapshot.Open(ctx, a, r, file)
	if err == nil {
		_ = v.Use(func(b []byte) error { *c.kept = append(*c.kept, bytes.Clone(b)); return nil })
	}
	return v, err
}

// beBroker is a broker with a real store and log. A line on its standard input has it forget
// what it keeps for the next question and collect its garbage.
func beBroker(dir string) error {
	signal.Ignore(syscall.SIGPIPE)
	var vars store.Store
	vars, err := folder.Open(filepath.Join(dir, "vars"), os.Geteuid())
	if err != nil {
		return err
	}
	var kept [][]byte
	if os.Getenv(leakyEnv) != "" {
		vars = careless{vars, &kept}
	}
	defer runtime.KeepAlive(&kept)
	logs, err := os.Open(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	log := audit.New(logs, "audit.log", audit.Options{})
	b, err := New(Options{
		VMs: filepath.Join(dir, "vms"), State: filepath.Join(dir, "state"),
		Settings: func() (*Settings, error) {
			return &Settings{Store: vars, Log: log, CheckSources: func(*vm.Spec) vm.Problems { return nil }}, nil
		},
		Peer: func(c *net.UnixConn) (*peer.Peer, error) {
			p, err := peer.Of(c)
			if err == nil {
				p.UID, p.Unit, p.Invocation = ownUser, own, first1
				if unit, _, ok := peer.LoadName(p.Name); ok {
					p.UID, p.Unit, p.Invocation = 0, unit, second2
				}
			}
			return p, err
		},
		Invocation: func(unit string) (string, error) { return map[string]string{own: first1, foreign: second2}[unit], nil },
		User:       func(string) (uint32, error) { return ownUser, nil },
		Log:        slog.New(slog.DiscardHandler),
		uid:        func(*peer.Peer) uint32 { return uint32(os.Geteuid()) },
	})
	if err != nil {
		return err
	}
	for name, serve := range map[string]func(context.Context, *net.UnixListener) error{"r": b.ServeRunners, "l": b.ServeLoads} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, name)})
		if err != nil {
			return err
		}
		go func() { _ = serve(context.Background(), l) }()
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := b.Close(); err != nil {
			return err
		}
		runtime.GC()
		runtime.GC()
		fmt.Println("collected")
	}
	return nil
}

// process is such a broker, and what it may hand out.
type process struct {
	t      *testing.T
	dir    string
	pid    int
	values map[string]string // by file of the generator
	in     *bufio.Scanner
	to     *os.File
}

func startProcess(t *testing.T, env ...string) *process {
	t.Helper()
	p := &process{t: t, dir: t.TempDir(), values: map[string]string{}}
	for _, d := range []string{"vars/gen", "log", "vms"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var lines strings.Builder
	r := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", t.Name()))[:32]))
	for i, n := range []int{16, 44, 700, 5000, 200_000} {
		b := make([]byte, n/2)
		_, _ = r.Read(b)
		name := fmt.Sprint("v-", i)
		p.values[name] = hex.EncodeToString(b)
		if err := os.WriteFile(filepath.Join(p.dir, "vars/gen", name), []byte(p.values[name]), 0o400); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&lines, "  %s: {var: gen/%s}\n", name, name)
	}
	for name, unit := range map[string]string{"test-vm": own, "other": foreign} {
		text := strings.TrimPrefix(everyone, "\n") + "unit: " + unit + "\ncredentials:\n" + lines.String() + "  host-file: {file: /run/secrets/x}\n"
		if err := os.WriteFile(filepath.Join(p.dir, "vms", name+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.run(env)
	return p
}

func (p *process) run(env []string) {
	p.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), brokerEnv+"="+p.dir), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p.pid, p.in, p.to = cmd.Process.Pid, bufio.NewScanner(out), in.(*os.File)
	p.hear("ready")
}

func (p *process) hear(want string) {
	p.t.Helper()
	if !p.in.Scan() || p.in.Text() != want {
		p.t.Fatalf("the broker says %q (%v), not %q", p.in.Text(), p.in.Err(), want)
	}
}

func (p *process) collect() {
	p.t.Helper()
	if _, err := p.to.WriteString("\n"); err != nil {
		p.t.Fatal(err)
	}
	p.hear("collected")
}

// askAll takes and loads and records all there is.
func (p *process) askAll() {
	p.t.Helper()
	a := secret.NewArena()
	defer a.Close()
	c := client.New(client.Options{Socket: filepath.Join(p.dir, "r"), UID: uint32(os.Geteuid()), Wait: time.Minute})
	taken, err := c.Take(p.t.Context(), "test-vm", a)
	if err != nil || len(taken.Values) != len(p.values) {
		p.t.Fatal(taken, err)
	}
	if err := c.Record(p.t.Context(), "test-vm", []wire.Credential{{Host: "host-file", Bytes: taken.Values["v-4"].Len()}}, []*secret.Value{taken.Values["v-4"]}); err != nil {
		p.t.Fatal(err)
	}
	f := &fixture{t: p.t, loads: filepath.Join(p.dir, "l")}
	for id := range p.values {
		if b, err := f.dialLoad(foreign, id); string(b) != p.values[id] {
			p.t.Fatalf("%s: %d bytes, %v", id, len(b), err)
		}
	}
	if b, err := f.dialLoad(foreign, credential.TransferList); len(b) == 0 || refusedLoad(b) {
		p.t.Fatalf("%d bytes, %v", len(b), err)
	}
	if b, _ := f.dialLoad(foreign, "none"); !refusedLoad(b) {
		p.t.Fatalf("%d bytes", len(b))
	}
}

func (p *process) copies() int {
	p.t.Helper()
	a := secret.NewArena()
	defer a.Close()
	var list []leak.Needle
	for name, text := range p.values {
		v, err := a.Make(len(text), func(b []byte) (int, error) { return copy(b, text), nil })
		if err != nil {
			p.t.Fatal(err)
		}
		list = append(list, leak.Needle{Name: name, Value: v})
	}
	n, err := leak.NewNeedles(list...)
	if err != nil {
		p.t.Fatal(err)
	}
	defer n.Close()
	m, err := leak.New(n).Memory(p.t.Context(), p.pid)
	if err != nil {
		p.t.Skip("SKIPPED, copies in memory: needs to read another process's memory: " + err.Error())
	}
	for _, c := range m.Copies {
		p.t.Logf("%s as %s %s: %d in %v", c.Needle, c.Form, c.Part, c.Count, c.Mappings)
	}
	return m.Total()
}

// After its answers, both ways, a broker has no copy of a value, and no file of its own has.
func TestMemoryAfterAnswers(t *testing.T) {
	p := startProcess(t)
	p.askAll()
	p.collect()
	if n := p.copies(); n > 0 {
		t.Errorf("%d copies of values are left", n)
	}
	for _, dir := range []string{"log", "state"} {
		err := filepath.WalkDir(filepath.Join(p.dir, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			for name, text := range p.values {
				if bytes.Contains(b, []byte(text[:min(len(text), 40)])) {
					t.Errorf("%s has the value of %s", path, name)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// The search finds what a careless broker keeps.
func TestMemoryOfACarelessBroker(t *testing.T) {
	p := startProcess(t, leakyEnv+"=1")
	p.askAll()
	p.collect()
	if p.copies() == 0 {
		t.Error("no copy is found where there are some")
	}
}

// Peers that send as much as they can have no more of it in memory than a few megabytes each.
func TestMemoryUnderAttack(t *testing.T) {
	p := startProcess(t)
	frame := `{"protocol":1,"op":"record","vm":"test-vm","credentials":[{"host":"` + strings.Repeat("x", 300_000) + `"}` + strings.Repeat(`,{}`, 200_000) + `]}`
	head := []byte{0, 0, 0, 0}
	for i := range 4 {
		head[i] = byte(len(frame) >> (24 - 8*i))
	}
	for range 5 {
		var open []net.Conn
		for range defaultLimits().peers {
			c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: filepath.Join(p.dir, "r")})
			if err != nil {
				t.Fatal(err)
			}
			if err := wire.ReceiveHello(c); err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(append(head, frame[:len(frame)-1]...))
			open = append(open, c)
		}
		for _, c := range open { // all at once
			_, _ = c.Write([]byte(frame[len(frame)-1:]))
		}
		for _, c := range open {
			answer, _, err := wire.ReceiveAnswer(c.(*net.UnixConn), nil)
			if err != nil || len(answer.Problems) == 0 {
				t.Errorf("%+v %v", answer, err)
			}
			_ = c.Close()
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	var peak int
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			_, _ = fmt.Sscan(rest, &peak)
		}
	}
	t.Logf("%d KiB at most", peak)
	most := 20<<10 + defaultLimits().peers*(5<<10)
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		most *= 4 // the detector's own
	}
	if peak == 0 || peak > most {
		t.Errorf("%d KiB of memory at the peak, more than %d", peak, most)
	}
	p.askAll()
}
