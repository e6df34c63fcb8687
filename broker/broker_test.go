// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/broker/client"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/vm"
)

const (
	own      = "vmcred@test-vm.service"
	foreign  = "microvm@other.service"
	first1   = "00000000000000000000000000000001"
	second2  = "00000000000000000000000000000002"
	ownUser  = 991
	everyone = `
version: 1
hypervisor: qemu
boot: {kernel: /k}
`
)

// memory is a store in memory. Its values are a test's, and no secrets.
type memory struct {
	mu   sync.Mutex
	all  map[string]map[string]string
	when map[string]int
	fail []error // of the next Pins, one each
}

func (m *memory) String() string { return "the vars of the test" }

func (m *memory) set(generator string, files map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all[generator] = files
	m.when[generator]++
}

func (m *memory) Pin(_ context.Context, refs ...store.Ref) (store.Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.fail) > 0 {
		err := m.fail[0]
		m.fail = m.fail[1:]
		return nil, err
	}
	s := &pinned{m, map[string]map[string]string{}, map[string]store.Version{}}
	for _, r := range refs {
		files, ok := m.all[r.Generator]
		if !ok {
			return nil, &store.NotFoundError{Store: m.String(), Ref: r}
		}
		s.files[r.Generator], s.versions[r.Generator] = files, store.Version(fmt.Sprint("v", m.when[r.Generator]))
	}
	return s, nil
}

func (m *memory) Put(context.Context, store.Ref, store.Version, []store.File) (store.Version, error) {
	return "", errors.ErrUnsupported
}

func (m *memory) List(context.Context) iter.Seq2[store.Meta, error] {
	return func(func(store.Meta, error) bool) {}
}

type pinned struct {
	m        *memory
	files    map[string]map[string]string
	versions map[string]store.Version
}

func (s *pinned) Version(r store.Ref) store.Version { return s.versions[r.Generator] }
func (s *pinned) Close() error                      { return nil }
func (s *pinned) Open(_ context.Context, a *secret.Arena, r store.Ref, file string) (*secret.Value, error) {
	text, ok := s.files[r.Generator][file]
	if !ok {
		return nil, &store.NotFoundError{Store: s.m.String(), Ref: r, File: file}
	}
	return a.Read(strings.NewReader(text), 2<<20)
}

// log is an audit log in memory.
type log struct {
	mu      sync.Mutex
	entries []audit.Entry
	err     error
	append  func() // called with each
}

func (l *log) Append(_ context.Context, entries ...audit.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.append != nil {
		l.append()
	}
	if l.err != nil {
		return l.err
	}
	l.entries = append(l.entries, entries...)
	return nil
}

// said are the records, a line each.
func (l *log) said() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, e := range l.entries {
		s := fmt.Sprintf("%s %s %s", e.Op, e.By.Unit, e.VM)
		if e.Credential != nil {
			s += " " + e.Credential.Host
		}
		if e.Version != "" {
			s += " " + e.Version
		}
		if e.Reason != "" {
			s += ": " + e.Reason
		}
		out = append(out, s)
	}
	return out
}

// fixture is a broker with a VM of our own and one whose unit is not ours.
type fixture struct {
	t       *testing.T
	b       *Broker
	o       Options
	store   *memory
	log     *log
	peer    peer.Peer // who asks next
	present string    // start of any unit; empty: that of who asks
	mu      sync.Mutex
	sources vm.Problems
	journal bytes.Buffer
	runners string // the sockets
	loads   string
}

func setUp(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{
		t: t, log: &log{}, store: &memory{all: map[string]map[string]string{}, when: map[string]int{}},
		peer: peer.Peer{UID: ownUser, PID: os.Getpid(), Unit: own, Invocation: first1},
	}
	f.store.set("gen", map[string]string{"api-key": "the api key", "db-password": "the password", "empty": ""})
	f.o = Options{
		VMs: t.TempDir(), State: filepath.Join(t.TempDir(), "state"), Version: "test",
		Settings: func() (*Settings, error) {
			return &Settings{Store: f.store, Log: f.log, LogPath: "/x/audit.log", CheckSources: func(*vm.Spec) vm.Problems { return f.sources }}, nil
		},
		Peer: func(c *net.UnixConn) (*peer.Peer, error) {
			// A real one, who says that he is another.
			p, err := peer.Of(c)
			if err != nil {
				return nil, err
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			p.UID, p.Unit, p.Slice, p.Invocation = f.peer.UID, f.peer.Unit, f.peer.Slice, f.peer.Invocation
			if f.peer.Name != "" {
				p.Name = f.peer.Name
			}
			return p, nil
		},
		Invocation: func(string) (string, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return cmp.Or(f.present, f.peer.Invocation), nil
		},
		User: func(string) (uint32, error) { return ownUser, nil },
		uid:  func(*peer.Peer) uint32 { return uint32(os.Geteuid()) },
		Log:  slog.New(slog.NewTextHandler(&lockedBuffer{b: &f.journal}, nil)),
	}
	f.vm("test-vm", "credentials:\n  host-api-key: {var: gen/api-key}\n  host-db-password: {var: gen/db-password}\n  host-file: {file: /run/secrets/x}\n  host-unit: {}\n")
	f.vm("other", "unit: "+foreign+"\ncredentials:\n  host-api-key: {var: gen/api-key}\n  host-db-password: {var: gen/db-password}\n  host-file: {file: /run/secrets/x}\n  host-enc: {encrypted: /etc/x}\n  host-unit: {}\n")
	f.start()
	return f
}

type lockedBuffer struct {
	mu sync.Mutex
	b  *bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (f *fixture) vm(name, more string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.o.VMs, name+".yaml"), []byte(strings.TrimPrefix(everyone, "\n")+more), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// start starts a broker, which goes on where an earlier one was.
func (f *fixture) start() (stop func()) {
	f.t.Helper()
	b, err := New(f.o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.b = b
	// The sender's number is real, its user is not.
	ctx, cancel := context.WithCancel(context.Background())
	dir := f.t.TempDir()
	f.runners, f.loads = filepath.Join(dir, "r"), filepath.Join(dir, "l")
	var done sync.WaitGroup
	for path, serve := range map[string]func(context.Context, *net.UnixListener) error{f.runners: b.ServeRunners, f.loads: b.ServeLoads} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
		if err != nil {
			f.t.Fatal(err)
		}
		done.Go(func() { _ = serve(ctx, l) })
	}
	stop = sync.OnceFunc(func() { cancel(); done.Wait(); _ = b.Close() })
	f.t.Cleanup(stop)
	return stop
}

func (f *fixture) client() *client.Client {
	return client.New(client.Options{Socket: f.runners, UID: uint32(os.Geteuid()), Wait: time.Minute})
}

// take is our runner's question. Values are strings here.
func (f *fixture) take(name string) (map[string]string, error) {
	a := secret.NewArena()
	defer a.Close()
	got, err := f.client().Take(f.t.Context(), name, a)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for host, v := range got.Values {
		_ = v.Use(func(b []byte) error { out[host] = string(b); return nil })
	}
	return out, nil
}

// load is systemd's question.
func (f *fixture) load(unit, id string) ([]byte, error) {
	f.mu.Lock()
	f.peer.Name = "@0123456789abcdef/unit/" + unit + "/" + id
	f.mu.Unlock()
	return f.dialLoad(unit, id)
}

// dialLoad is systemd's question with the name that systemd binds.
func (f *fixture) dialLoad(unit, id string) ([]byte, error) {
	name := fmt.Sprintf("@%016x/unit/%s/%s", rand.Uint64(), unit, id)
	c, err := net.DialUnix("unix", &net.UnixAddr{Net: "unix", Name: name}, &net.UnixAddr{Net: "unix", Name: f.loads})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return io.ReadAll(c)
}

// login is a person, not a unit of the host's.
func (f *fixture) login(uid uint32, number int) *fixture {
	f.as(uid, "session-1.scope", "")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.peer.Slice = fmt.Sprintf("user-%d.slice", number)
	return f
}

func (f *fixture) as(uid uint32, unit, invocation string) *fixture {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.peer.UID, f.peer.Unit, f.peer.Slice, f.peer.Invocation = uid, unit, "system.slice", invocation
	return f
}
