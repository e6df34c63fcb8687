// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/broker/transfer"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/store/folder"
)

// real is a fixture whose store and log are those of a host.
type real struct {
	*fixture
	vars, logs string // directories
	folder     *folder.Folder
	present    sync.Map // a unit's start
}

func setUpReal(t *testing.T) *real {
	t.Helper()
	dir := t.TempDir()
	r := &real{fixture: setUp(t), vars: filepath.Join(dir, "vars"), logs: filepath.Join(dir, "log")}
	for _, d := range []string{r.vars, r.logs} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if r.folder, err = folder.Open(r.vars, os.Geteuid()); err != nil {
		t.Fatal(err)
	}
	return r
}

// settings has the log opened as the program does it.
func (r *real) settings(wait time.Duration) func() (*Settings, error) {
	all, log := r.o.Settings, r.openLog(wait)
	return func() (*Settings, error) {
		s, err := all()
		s.Store, s.Log = r.folder, log
		return s, err
	}
}

func (r *real) openLog(wait time.Duration) *audit.Log {
	r.t.Helper()
	d, err := os.Open(r.logs)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = d.Close() })
	return audit.New(d, "audit.log", audit.Options{Wait: wait})
}

// put writes a generator's files, and returns its version.
func (r *real) put(base store.Version, files map[string]string) store.Version {
	r.t.Helper()
	a := secret.NewArena()
	defer a.Close()
	var all []store.File
	for name, text := range files {
		v, err := a.Read(strings.NewReader(text), len(text))
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, store.File{Name: name, Value: v})
	}
	version, err := r.folder.Put(r.t.Context(), store.Ref{Generator: "gen"}, base, all)
	if err != nil {
		r.t.Fatal(err)
	}
	return version
}

// records are the log's lines that say something of a unit's start.
func (r *real) records(op audit.Operation) map[string]int {
	r.t.Helper()
	d, err := os.Open(r.logs)
	if err != nil {
		r.t.Fatal(err)
	}
	defer d.Close()
	out := map[string]int{}
	for line, err := range audit.NewReader(d, "audit.log").Lines() {
		if err != nil || line.Err != nil {
			r.t.Fatal(err, line.Err)
		}
		if rec := line.Record; rec.Op == op && rec.By != nil {
			host := ""
			if rec.Credential != nil {
				host = rec.Credential.Host
			}
			out[rec.By.Invocation+"/"+host]++
		}
	}
	return out
}

// rawTake is what a runner that asks for its values receives: words alone, and no file.
func (f *fixture) rawTake(name string) ([]wire.Problem, error) {
	f.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: f.runners})
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.Close()
	if err := errors.Join(wire.ReceiveHello(c), wire.Send(c, wire.Request{Protocol: wire.Protocol, Op: wire.Take, VM: name}, nil)); err != nil {
		f.t.Fatal(err)
	}
	answer, _, err := wire.ReceiveAnswer(c, nil)
	if err != nil {
		return nil, err
	}
	if err := c.CloseWrite(); err != nil { // the broker waits for that
		f.t.Error(err)
	}
	more, err := io.ReadAll(c)
	if len(more) > 0 {
		f.t.Errorf("%d bytes after the answer", len(more))
	}
	if len(answer.Credentials) > 0 {
		f.t.Errorf("%v", answer.Credentials)
	}
	return answer.Problems, err
}

// nothingLeaves: neither way gives out a byte of a value, and both say why.
func (r *real) nothingLeaves(want string) {
	r.t.Helper()
	ps, err := r.as(ownUser, own, first1).rawTake("test-vm")
	if err != nil || len(ps) != 1 || !strings.Contains(ps[0].Message, want) || !ps[0].Retry {
		r.t.Errorf("%v %v, want %q", ps, err, want)
	}
	for _, id := range []string{"host-api-key", "host-db-password"} {
		if b, err := r.as(0, foreign, second2).load(foreign, id); !refusedLoad(b) {
			r.t.Errorf("%s: %d bytes, %v", id, len(b), err)
		}
	}
	if said := r.journal.String(); !strings.Contains(said, want) {
		r.t.Errorf("the journal does not say %q:\n%s", want, said)
	}
}

func (r *real) allLeaves() {
	r.t.Helper()
	if got, err := r.as(ownUser, own, first1).take("test-vm"); err != nil || got["host-api-key"] != "a1" {
		r.t.Errorf("%v %v", got, err)
	}
	if b, err := r.as(0, foreign, second2).load(foreign, "host-api-key"); string(b) != "a1" {
		r.t.Errorf("%d bytes, %v", len(b), err)
	}
}

// A log that cannot be written: nothing leaves. When it can be again, everything does.
func TestALogThatCannotBeWritten(t *testing.T) {
	r := setUpReal(t)
	r.put("", map[string]string{"api-key": "a1", "db-password": "d1"})
	path := filepath.Join(r.logs, "audit.log")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	r.o.Settings = r.settings(0)
	r.start()
	r.nothingLeaves("audit.log")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.allLeaves()
	if got := r.records(audit.Release); len(got) != 3 {
		t.Errorf("%v", got)
	}
}

func TestALogThatIsFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, a full disk: needs root, to mount one")
	}
	r := setUpReal(t)
	r.put("", map[string]string{"api-key": "a1", "db-password": "d1"})
	if err := unix.Mount("tmpfs", r.logs, "tmpfs", 0, "size=64k,mode=700"); err != nil {
		t.Skip("SKIPPED, a full disk: needs mount(2): " + err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(r.logs, unix.MNT_DETACH) })
	ballast := filepath.Join(r.logs, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 64<<10), 0o600); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	r.o.Settings = r.settings(0)
	r.start()
	r.nothingLeaves("no space left on device")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	r.allLeaves()
}

// A log that is locked by somebody who does not go on.
func TestALogThatIsLocked(t *testing.T) {
	r := setUpReal(t)
	r.put("", map[string]string{"api-key": "a1", "db-password": "d1"})
	r.o.Settings = r.settings(20 * time.Millisecond)
	r.start()
	key, err := os.OpenFile(filepath.Join(r.logs, "audit.log.key"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	if err := unix.Flock(int(key.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	r.nothingLeaves("audit.log")
}

// Our runner's values are on record before it has an answer.
func TestRecordFirstForARunner(t *testing.T) {
	f := setUp(t)
	recording, goOn := make(chan struct{}), make(chan struct{})
	f.log.append = func() { close(recording); <-goOn }
	taken := make(chan error, 1)
	go func() {
		_, err := f.take("test-vm")
		taken <- err
	}()
	<-recording
	select {
	case err := <-taken:
		t.Errorf("it has its values before they are on record: %v", err)
	default:
	}
	if n := memfds(t); n != 0 {
		t.Errorf("%d memory files with values before they are on record", n)
	}
	close(goOn)
	if err := <-taken; err != nil {
		t.Error(err)
	}
}

// memfds are those of this process's memory files that are for values.
func memfds(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range all {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "/memfd:vmcred-values") {
			n++
		}
	}
	return n
}

// askers have systemd's questions asked of a real store and a real log by many units at once.
type askers struct {
	*real
	mu     sync.RWMutex // over which broker is there
	number atomic.Uint64
	whole  atomic.Int64
	none   atomic.Int64
	given  sync.Map // what was received: "INVOCATION/HOST" → *atomic.Int64
}

// ask is one question; nil: nobody answered it, or with a refusal.
func (a *askers) ask(unit, id string) []byte {
	name := fmt.Sprintf("@%016x/unit/%s/%s", a.number.Add(1), unit, id)
	a.mu.RLock()
	path := a.loads
	a.mu.RUnlock()
	c, err := net.DialUnix("unix", &net.UnixAddr{Net: "unix", Name: name}, &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	// A refusal, too, can be cut by a broker's end: who compares with the list sees it.
	if err != nil || len(bytes.Trim(b, "\x00")) == 0 {
		return nil
	}
	return b
}

// unitStart is one start: everything is asked for, some of it twice, at once or one by one.
func (a *askers) unitStart(t *testing.T, unit string) {
	invocation := fmt.Sprintf("%032x", a.number.Add(1))
	a.present.Store(unit, invocation)
	var all sync.WaitGroup
	var mu sync.Mutex
	got := map[string][][]byte{}
	ask := func(id string) {
		b := a.ask(unit, id)
		mu.Lock()
		defer mu.Unlock()
		got[id] = append(got[id], b)
		if b != nil && id != credential.TransferList {
			n, _ := a.given.LoadOrStore(invocation+"/"+id, &atomic.Int64{})
			n.(*atomic.Int64).Add(1)
		}
	}
	atOnce := rand.IntN(2) == 0
	for _, id := range []string{"host-api-key", credential.TransferList, "host-db-password", "host-api-key", "host-db-password"} {
		if atOnce {
			all.Go(func() { ask(id) })
		} else {
			ask(id)
		}
	}
	all.Wait()
	numbers := map[string]bool{}
	complete := true
	for id, bs := range got {
		for _, b := range bs {
			switch {
			case b == nil:
				complete = false
			case id != credential.TransferList:
				numbers[string(b[1:])] = true
			}
		}
	}
	if len(numbers) > 1 {
		t.Errorf("a start was given values of %d versions: %v", len(numbers), numbers)
	}
	if !complete {
		a.none.Add(1)
		return
	}
	a.whole.Add(1)
	a.compare(t, got)
}

func (a *askers) compare(t *testing.T, got map[string][][]byte) {
	arena := secret.NewArena()
	defer arena.Close()
	value := func(b []byte) *secret.Value {
		v, err := arena.Make(len(b), func(to []byte) (int, error) { return copy(to, b), nil })
		if err != nil {
			t.Error(err)
		}
		return v
	}
	list, err := transfer.Parse(arena, value(got[credential.TransferList][0]))
	if err != nil {
		t.Error(err)
		return
	}
	for _, name := range list.Names() {
		if err := list.Verify(name, value(got[name][0])); err != nil {
			t.Error(err)
		}
	}
}

// While the store's values are replaced all the time, many units start at once, and brokers
// end in the middle and are followed by others: no start has values of two versions, and
// nothing was received that is not on record.
func TestManyStartsWhileValuesChange(t *testing.T) {
	a := &askers{real: setUpReal(t)}
	const units, starts = 6, 12
	for n := range units {
		a.vm(fmt.Sprint("x", n), fmt.Sprintf("unit: x%d.service\ncredentials:\n  host-api-key: {var: gen/api-key}\n  host-db-password: {var: gen/db-password}\n", n))
	}
	base := a.put("", map[string]string{"api-key": "a0", "db-password": "d0"})
	a.o.Settings = a.settings(0)
	a.o.Peer = func(c *net.UnixConn) (*peer.Peer, error) {
		p, err := peer.Of(c)
		if err != nil {
			return nil, err
		}
		p.UID, p.Slice = 0, "system.slice"
		p.Unit, _, _ = peer.LoadName(p.Name)
		p.Invocation, err = a.invocation(p.Unit)
		return p, err
	}
	a.o.Invocation = a.invocation
	l := defaultLimits()
	l.grace = 0 // as if it were killed
	a.o.limits = &l
	stop := a.start()
	stopped := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() { // the values
		for n := 1; ; n++ {
			select {
			case <-stopped:
				return
			default:
				base = a.put(base, map[string]string{"api-key": fmt.Sprint("a", n), "db-password": fmt.Sprint("d", n)})
			}
		}
	})
	others.Go(func() { // the brokers
		for seen := int64(0); ; {
			select {
			case <-stopped:
				return
			default:
			}
			if done := a.whole.Load() + a.none.Load(); done >= seen+units {
				seen = done
				a.mu.Lock()
				stop()
				stop = a.start()
				a.mu.Unlock()
			}
		}
	})
	var all sync.WaitGroup
	for n := range units {
		all.Go(func() {
			for range starts {
				a.unitStart(t, fmt.Sprintf("x%d.service", n))
			}
		})
	}
	all.Wait()
	close(stopped)
	others.Wait()
	stop()
	recorded := a.records(audit.Release)
	a.given.Range(func(key, n any) bool {
		if got := int(n.(*atomic.Int64).Load()); recorded[key.(string)] < got {
			t.Errorf("%s was received %d times, and is on record %d times", key, got, recorded[key.(string)])
		}
		return true
	})
	if a.whole.Load() == 0 {
		t.Error("no start had all its values")
	}
	t.Logf("%d starts had all values of one version, %d did not", a.whole.Load(), a.none.Load())
}

func (a *askers) invocation(unit string) (string, error) {
	id, ok := a.present.Load(unit)
	if !ok {
		return "", os.ErrNotExist
	}
	return id.(string), nil
}
