// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmcred/vmcred/broker/transfer"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/secret"
)

// refusedLoad: so many zeros that systemd fails the unit.
func refusedLoad(b []byte) bool {
	return len(b) > credential.MaxValue && len(bytes.Trim(b, "\x00")) == 0
}

func TestLoad(t *testing.T) {
	f := setUp(t)
	f.as(0, foreign, first1)
	got := map[string][]byte{}
	for _, id := range []string{credential.TransferList, "host-api-key", "host-db-password", "host-api-key"} {
		b, err := f.load(foreign, id)
		if err != nil || refusedLoad(b) {
			t.Fatalf("%s: %d bytes, %v", id, len(b), err)
		}
		got[id] = b
	}
	if string(got["host-api-key"]) != "the api key" || string(got["host-db-password"]) != "the password" {
		t.Errorf("%q", got)
	}
	f.verify(got)
	if want := 3; len(f.log.said()) != want { // each hand-over is one; the list holds no value
		t.Errorf("%q, want %d records", f.log.said(), want)
	}
}

// verify compares what was loaded with the list that came along.
func (f *fixture) verify(got map[string][]byte) {
	f.t.Helper()
	a := secret.NewArena()
	defer a.Close()
	value := func(b []byte) *secret.Value {
		v, err := a.Read(bytes.NewReader(b), 2<<20)
		if err != nil {
			f.t.Fatal(err)
		}
		return v
	}
	l, err := transfer.Parse(a, value(got[credential.TransferList]))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, name := range l.Names() {
		if err := l.Verify(name, value(got[name])); err != nil {
			f.t.Error(err)
		}
	}
	if len(l.Names()) != len(got)-1 {
		f.t.Errorf("%q are on the list", l.Names())
	}
}

func TestLoadIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change   func(f *fixture)
		unit, id string
		want     string
	}{
		"undeclared": {func(*fixture) {}, foreign, "host-none", "declares no credential of this name"},
		"a file's":   {func(*fixture) {}, foreign, "host-file", "LoadCredential=host-file:/run/secrets/x"},
		"unknown":    {func(f *fixture) { f.as(0, "x.service", first1) }, "x.service", "host-api-key", "is no VM's unit"},
		"forged":     {func(f *fixture) { f.as(0, "evil.service", first1) }, foreign, "host-api-key", "evil.service asks in the name of " + foreign},
		"not root":   {func(f *fixture) { f.as(7, foreign, first1) }, foreign, "host-api-key", "user 7 asks as if it were systemd"},
		"empty":      {func(f *fixture) { f.store.set("gen", map[string]string{"api-key": "", "db-password": "x"}) }, foreign, "host-db-password", "gen/api-key, is empty"},
		"too large": {func(f *fixture) {
			f.store.set("gen", map[string]string{"api-key": strings.Repeat("x", 1<<20+1), "db-password": "x"})
		}, foreign, "host-api-key", "1048577 bytes"},
		"log is full": {func(f *fixture) { f.log.err = errors.New("no space left on device") }, foreign, "host-api-key", "no space left on device"},
		"no unit":     {func(f *fixture) { f.as(0, "", "") }, foreign, "host-api-key", "in no unit"},
	} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			f.as(0, foreign, first1)
			c.change(f)
			b, err := f.load(c.unit, c.id)
			if !refusedLoad(b) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if said := f.journal.String(); !strings.Contains(said, c.want) || f.peer.Unit != "" && !strings.Contains(said, "object_systemd_unit="+f.peer.Unit) {
				t.Errorf("the journal does not say %q:\n%s", c.want, said)
			}
			if record := strings.Join(f.log.said(), "\n"); name != "log is full" && (!strings.Contains(record, "refuse") || strings.Contains(record, "release")) {
				t.Errorf("on record:\n%s", record)
			}
		})
	}
}

// An empty value that is allowed is no refusal: the list tells it from a broker that died.
func TestAnEmptyValueThatIsAllowed(t *testing.T) {
	f := setUp(t)
	f.vm("other", "unit: "+foreign+"\ncredentials:\n  host-e: {var: gen/empty, allow-empty: true}\n")
	f.as(0, foreign, first1)
	got := map[string][]byte{}
	for _, id := range []string{"host-e", credential.TransferList} {
		b, err := f.load(foreign, id)
		if err != nil {
			t.Fatal(err)
		}
		got[id] = b
	}
	if len(got["host-e"]) != 0 {
		t.Errorf("%q", got)
	}
	f.verify(got)
}

// While the values are replaced all the time, and brokers come and go, every start gets
// those of one moment, or nothing.
func TestOneVersionForEachStart(t *testing.T) {
	f := setUp(t)
	stop := f.start()
	defer func() { stop() }()
	rotate := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-rotate:
				return
			default:
				f.store.set("gen", map[string]string{"api-key": fmt.Sprint("a", n), "db-password": fmt.Sprint("d", n)})
			}
		}
	})
	whole, none := 0, 0
	for n := range 300 {
		f.as(0, foreign, fmt.Sprintf("%032x", n))
		got := map[string][]byte{}
		for i, id := range []string{"host-api-key", credential.TransferList, "host-db-password", "host-api-key"} {
			if n%3 == 0 && i == 2 {
				stop()
				stop = f.start()
			}
			b, err := f.load(foreign, id)
			if err != nil {
				t.Fatal(err)
			}
			if old, ok := got[id]; ok && !refusedLoad(b) && !bytes.Equal(b, old) {
				t.Fatalf("start %d: %q, then %q", n, old, b)
			}
			got[id] = b
		}
		if refusedLoad(got["host-db-password"]) {
			none++
			continue
		}
		whole++
		if a, d := string(got["host-api-key"]), string(got["host-db-password"]); !refusedLoad(got["host-api-key"]) && a[1:] != d[1:] {
			t.Fatalf("start %d: %s with %s", n, a, d)
		}
	}
	close(rotate)
	done.Wait()
	if whole == 0 || none == 0 {
		t.Errorf("%d starts had all, %d were refused: both must have happened", whole, none)
	}
	t.Logf("%d starts had all values of one version, %d were refused", whole, none)
}

// A broker that comes after another goes on with what that had given, if it can.
func TestAnotherBrokerGoesOn(t *testing.T) {
	f := setUp(t)
	stop := f.start()
	f.as(0, foreign, first1)
	if b, _ := f.load(foreign, "host-api-key"); refusedLoad(b) {
		t.Fatal("refused")
	}
	stop()
	stop = f.start()
	if b, _ := f.load(foreign, "host-db-password"); string(b) != "the password" {
		t.Errorf("%d bytes", len(b))
	}
	stop()
	f.store.set("gen", map[string]string{"api-key": "x", "db-password": "y"})
	stop = f.start()
	if b, _ := f.load(foreign, "host-db-password"); !refusedLoad(b) {
		t.Errorf("%q, of another version", b)
	}
	if !strings.Contains(f.journal.String(), "the values were changed while the unit was starting") {
		t.Error(f.journal.String())
	}
	// The unit starts anew: what the old start had is forgotten.
	f.as(0, foreign, second2)
	if b, _ := f.load(foreign, "host-db-password"); string(b) != "y" {
		t.Errorf("%d bytes", len(b))
	}
	stop()
	f.start()
	left, err := os.ReadDir(f.o.State)
	if err != nil || len(left) != 1 || left[0].Name() != second2 {
		t.Errorf("%v %v", left, err)
	}
}

// Values are not kept for ever, and not without a limit.
func TestValuesAreForgotten(t *testing.T) {
	f := setUp(t)
	l := defaultLimits()
	l.hold, l.memory = time.Hour, 2*arenaBytes+100
	f.o.limits = &l
	f.start()
	for n := range 3 {
		unit := fmt.Sprintf("x%d.service", n)
		f.vm(fmt.Sprintf("x%d", n), "unit: "+unit+"\ncredentials:\n  k: {var: gen/api-key}\n")
		f.as(0, unit, fmt.Sprintf("%032x", n))
		if b, _ := f.load(unit, "k"); string(b) != "the api key" {
			t.Fatalf("%d bytes", len(b))
		}
	}
	f.b.starts.mu.Lock()
	held := f.b.starts.held
	f.b.starts.mu.Unlock()
	if held > l.memory {
		t.Errorf("%d bytes are held, more than %d", held, l.memory)
	}
	f.as(0, "x0.service", fmt.Sprintf("%032x", 0))
	f.store.set("gen", map[string]string{"api-key": "new"})
	if b, _ := f.load("x0.service", "k"); !refusedLoad(b) {
		t.Errorf("%q: it was forgotten, and is another one by now", b)
	}
}

// A record is durable before the first byte leaves.
func TestRecordFirst(t *testing.T) {
	f := setUp(t)
	f.as(0, foreign, first1)
	f.mu.Lock()
	f.peer.Name = loadName(foreign, "host-api-key")
	f.mu.Unlock()
	recording, goOn := make(chan struct{}), make(chan struct{})
	f.log.mu.Lock()
	f.log.append = func() { close(recording); <-goOn }
	f.log.mu.Unlock()
	c, err := net.Dial("unix", f.loads)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-recording
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes left before the record was durable: %v", n, err)
	}
	close(goOn)
	_ = c.SetReadDeadline(time.Time{})
	if b, err := io.ReadAll(c); string(b) != "the api key" {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// Peers that are silent, slow or many do not hold up another one.
func TestOthersAreNotHeldUp(t *testing.T) {
	f := setUp(t)
	l := defaultLimits()
	l.silent = time.Hour
	f.o.limits = &l
	f.start()
	f.as(4242, "", "")
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	closed := 0
	for range 100 {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: f.runners})
		if err != nil {
			t.Fatal(err)
		}
		if wire.ReceiveHello(c) != nil {
			closed++
		}
		open = append(open, c)
	}
	if closed != 100-l.peers {
		t.Errorf("%d of 100 connections of one user were closed, and %d may be open", closed, l.peers)
	}
	if _, err := f.as(ownUser, own, first1).take("test-vm"); err != nil {
		t.Error(err)
	}
	if _, err := f.as(4242, "", "").client().Health(t.Context()); err == nil {
		t.Error("a user with too many connections has one more")
	}
}

func TestASilentPeerIsSentAway(t *testing.T) {
	f := setUp(t)
	l := defaultLimits()
	l.silent = 10 * time.Millisecond
	f.o.limits = &l
	f.start()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: f.runners})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// A stranger cannot fill the log.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	f := setUp(t)
	for range 50 {
		if _, err := f.as(4242, "evil.service", first1).take("test-vm"); err == nil {
			t.Fatal("handed out")
		}
	}
	if n := len(f.log.said()); n != strangerBurst {
		t.Errorf("%d records", n)
	}
	// Whatever user numbers it takes.
	if _, err := f.as(4243, "evil.service", first1).take("test-vm"); err == nil || len(f.log.said()) != strangerBurst {
		t.Errorf("%d records: %v", len(f.log.said()), err)
	}
	if _, err := f.as(4242, "evil2.service", first1).take("test-vm"); err == nil || len(f.log.said()) != strangerBurst+1 {
		t.Errorf("another one's is not on record: %v", err)
	}
	// And of a VM's own unit only so many.
	if _, err := f.as(ownUser, own, first1).take("test-vm"); err != nil {
		t.Fatal(err)
	}
	_, _ = f.take("test-vm") // refused, and on record
	n := len(f.log.said())
	f.b.flood.all[own].limit.SetBurst(1)
	for range 10 {
		_, _ = f.take("test-vm")
	}
	if len(f.log.said()) > n+2 {
		t.Errorf("%d more records", len(f.log.said())-n)
	}
}

// A question of a start that is over gets nothing, and leaves the present one alone.
func TestALateQuestion(t *testing.T) {
	f := setUp(t)
	ask := func(id string) []byte {
		b, err := f.load(foreign, id)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	f.as(0, foreign, second2)
	if b := ask("host-api-key"); string(b) != "the api key" {
		t.Fatalf("%q", b)
	}
	f.mu.Lock()
	f.present = second2
	f.mu.Unlock()
	f.as(0, foreign, first1)
	if b := ask("host-api-key"); !refusedLoad(b) || !strings.Contains(f.journal.String(), "started anew") {
		t.Errorf("a start that is over is given %d bytes:\n%s", len(b), f.journal.String())
	}
	f.store.set("gen", map[string]string{"api-key": "a new key", "db-password": "a new password"})
	f.as(0, foreign, second2)
	if b := ask("host-db-password"); string(b) != "the password" {
		t.Errorf("the present start goes on with %q", b)
	}
}

// A broker that ends answers whoever it has accepted: without a byte it would be an empty value.
func TestTheEndIsNoEmptyValue(t *testing.T) {
	for range 50 {
		f := setUp(t)
		stop := f.start()
		f.as(0, foreign, first1)
		f.mu.Lock()
		f.peer.Name = loadName(foreign, "host-api-key")
		f.mu.Unlock()
		var all sync.WaitGroup
		for range 8 {
			c, err := net.Dial("unix", f.loads)
			if err != nil {
				t.Fatal(err)
			}
			all.Go(func() {
				defer c.Close()
				// What is still in the kernel's hands when nobody listens any more is reset.
				b, err := io.ReadAll(c)
				if err == nil && len(b) == 0 {
					t.Error("an empty value")
				}
			})
		}
		stop()
		all.Wait()
	}
}

// The VM's file names another value while the unit starts.
func TestTheFileChangesDuringAStart(t *testing.T) {
	f := setUp(t)
	f.as(0, foreign, first1)
	if b, _ := f.load(foreign, "host-api-key"); string(b) != "the api key" {
		t.Fatalf("%d bytes", len(b))
	}
	f.vm("other", "unit: "+foreign+"\ncredentials:\n  host-api-key: {var: gen/db-password}\n  host-db-password: {var: gen/db-password}\n# longer\n")
	if b, _ := f.load(foreign, "host-api-key"); !refusedLoad(b) {
		t.Errorf("%q", b)
	}
}
