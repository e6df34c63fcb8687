// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/broker/client"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
)

// A store that is being changed is read again; what passes is no refusal for good.
func TestAStoreThatChanges(t *testing.T) {
	f := setUp(t)
	f.store.fail = []error{fmt.Errorf("gen/x: %w", store.ErrChanging), store.ErrChanging}
	if _, err := f.take("test-vm"); err != nil {
		t.Fatal(err)
	}
	f.as(ownUser, own, second2)
	for _, err := range []error{store.ErrChanging, context.Canceled, unix.EMFILE, &secret.LockError{Err: unix.ENOMEM}} {
		for range tries {
			f.store.fail = append(f.store.fail, fmt.Errorf("gen/x: %w", err))
		}
		_, got := f.take("test-vm")
		var failed *client.FailedError
		if !errors.As(got, &failed) || !strings.Contains(got.Error(), "gen/x: ") {
			t.Errorf("%v: %v", err, got)
		}
		f.store.fail = nil
	}
	f.store.fail = []error{errors.New("can be written by others")}
	var refused *client.RefusedError
	if _, err := f.take("test-vm"); !errors.As(err, &refused) {
		t.Errorf("%v", err)
	}
}

// A store that is not there is missed by those who need it, and by nobody else.
func TestAStoreThatIsNotThere(t *testing.T) {
	f := setUp(t)
	all := f.o.Settings
	f.b.o.Settings = func() (*Settings, error) {
		s, err := all()
		s.Store, s.NoStore = nil, errors.New("/x: it does not exist")
		return s, err
	}
	if _, err := f.take("test-vm"); err == nil || !strings.Contains(err.Error(), "/x: it does not exist") {
		t.Errorf("%v", err)
	}
	a := secret.NewArena()
	defer a.Close()
	v, err := a.Read(strings.NewReader("v"), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.client().Record(t.Context(), "test-vm", []wire.Credential{{Host: "host-file", Bytes: 1}}, []*secret.Value{v}); err != nil {
		t.Error(err)
	}
	if h, err := f.client().Health(t.Context()); err != nil || h.Fault != "/x: it does not exist" {
		t.Errorf("%+v %v", h, err)
	}
}

// A second file that names a unit is seen: at once if it is new, soon if it was rewritten.
func TestAUnitThatIsNamedTwice(t *testing.T) {
	f := setUp(t)
	p := asked(0, foreign, loadName(foreign, "host-api-key"))
	mayLoad := func(reason string) {
		t.Helper()
		spec, _, ps := f.b.ofLoad(p)
		check(t, spec, ps, reason)
	}
	mayLoad("")
	f.vm("twin", "unit: "+foreign+"\n")
	mayLoad("more than one VM: " + filepath.Join(f.o.VMs, "other.yaml") + ", " + filepath.Join(f.o.VMs, "twin.yaml"))
	f.vm("twin", "unit: x.service\n")
	f.b.vms.looked = time.Time{}
	mayLoad("")
	f.b.vms.looked = time.Now().Add(time.Hour)
	f.vm("twin", "unit: "+foreign+"\n#\n")
	mayLoad("")
	f.b.vms.looked = time.Now().Add(-2 * looksEvery)
	mayLoad("more than one VM")
	if err := os.Remove(filepath.Join(f.o.VMs, "twin.yaml")); err != nil {
		t.Fatal(err)
	}
	mayLoad("")
}

// A question that waited while its unit was started anew is one of a start that is over.
func TestAStartThatEndsMeanwhile(t *testing.T) {
	f := setUp(t)
	spec, _ := f.b.vms.named("other")
	s := f.b.starts
	begin := func(invocation string) (*start, error) {
		f.as(0, foreign, invocation)
		p := asked(0, foreign, "")
		p.Invocation = invocation
		st, err := s.begin(p, spec)
		if err == nil {
			st.mu.Unlock()
		}
		return st, err
	}
	old, err := begin(first1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := begin(second2); err != nil {
		t.Fatal(err)
	}
	s.now[foreign] = old // as who found it before
	if _, err := begin(first1); !errors.Is(err, errOver) {
		t.Errorf("%v", err)
	}
}

// What was recorded before a value was asked for does not keep its version from being
// written down before it leaves; nor does a list that is asked for first.
func TestVersionsAreWrittenDown(t *testing.T) {
	f := setUp(t)
	stop := f.start()
	a := secret.NewArena()
	defer a.Close()
	v, err := a.Read(strings.NewReader("v"), 1)
	if err != nil {
		t.Fatal(err)
	}
	f.as(5, foreign, first1)
	if err := f.client().Record(t.Context(), "other", []wire.Credential{{Host: "host-file", Bytes: 1}}, []*secret.Value{v}); err != nil {
		t.Fatal(err)
	}
	stop()
	stop = f.start()
	f.as(0, foreign, first1)
	if b, _ := f.load(foreign, credential.TransferList); refusedLoad(b) {
		t.Fatal(f.journal.String())
	}
	stop()
	f.store.set("gen", map[string]string{"api-key": "x", "db-password": "y"})
	f.start()
	if b, _ := f.load(foreign, "host-api-key"); !refusedLoad(b) {
		t.Errorf("%q, and the list was of another version", b)
	}
}

// What could not be put on record is not said to have been given.
func TestNothingIsNotedThatDidNotLeave(t *testing.T) {
	f := setUp(t)
	f.log.err = errors.New("full")
	if _, err := f.take("test-vm"); err == nil {
		t.Fatal("handed out")
	}
	if b, _ := f.as(0, foreign, second2).load(foreign, "host-api-key"); !refusedLoad(b) {
		t.Fatal("handed out")
	}
	for unit, invocation := range map[string]string{own: first1, foreign: second2} {
		g, err := f.b.starts.state.load(invocation)
		if err != nil || g.Unit != unit || len(g.Delivered) > 0 || g.Taken {
			t.Errorf("%s: %+v %v", unit, g, err)
		}
	}
}
