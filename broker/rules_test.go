// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/broker/client"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/vm"
)

func asked(uid uint32, unit, name string) *peer.Peer {
	return &peer.Peer{UID: uid, Unit: unit, Invocation: first1, Name: name}
}

func loadName(unit, id string) string { return "@0123456789abcdef/unit/" + unit + "/" + id }

func TestWhoMayTake(t *testing.T) {
	f := setUp(t)
	f.vm("broken", "credentialz: {}\n")
	for _, c := range []struct {
		p          *peer.Peer
		vm, reason string
	}{
		{asked(ownUser, own, ""), "test-vm", ""},
		{asked(0, own, ""), "test-vm", ""},
		{asked(5, foreign, ""), "other", ""},
		{asked(ownUser, "", ""), "test-vm", "in no unit"},
		{asked(ownUser, "evil@test-vm.service", ""), "test-vm", "evil@test-vm.service may not have the secrets of the VM test-vm: they are for vmcred@test-vm.service"},
		{asked(ownUser, "vmcred@other.service", ""), "test-vm", "may not have"},
		{asked(ownUser, "vmcred@other.service", ""), "other", "they are for " + foreign},
		{asked(ownUser+1, own, ""), "test-vm", "user 992 asks for the VM test-vm, which is user vmcred-test-vm's"},
		{asked(ownUser, own, ""), "none", "there is no"},
		{asked(ownUser, own, ""), "../test-vm", "VM"},
		{asked(ownUser, own, ""), "", "VM"},
		{asked(ownUser, own, ""), "broken", "credentialz"},
		{&peer.Peer{UID: ownUser, Unit: own}, "test-vm", "which start"},
	} {
		spec, ps := f.b.ofRunner(c.p, c.vm)
		check(t, spec, ps, c.reason)
	}
}

func check(t *testing.T, spec *vm.Spec, ps problems, reason string) {
	t.Helper()
	switch {
	case reason == "" && (len(ps) > 0 || spec == nil):
		t.Errorf("refused: %v", ps)
	case reason != "" && (len(ps) == 0 || !strings.Contains(ps[0].Message, reason)):
		t.Errorf("%v, want %q", ps, reason)
	}
}

func TestWhoMayLoad(t *testing.T) {
	f := setUp(t)
	f.vm("twin-a", "unit: twin.service\n")
	f.vm("twin-b", "unit: twin.service\n")
	for _, c := range []struct {
		p      *peer.Peer
		reason string
	}{
		{asked(0, foreign, loadName(foreign, "host-api-key")), ""},
		{asked(0, own, loadName(own, "host-api-key")), ""},
		{asked(0, foreign, ""), "systemd's LoadCredential= alone"},
		{asked(0, foreign, "/run/x"), "systemd's LoadCredential= alone"},
		{asked(7, foreign, loadName(foreign, "host-api-key")), "user 7 asks as if it were systemd"},
		{asked(0, "evil.service", loadName(foreign, "host-api-key")), "evil.service asks in the name of " + foreign},
		{asked(0, "", loadName(foreign, "host-api-key")), "in no unit"},
		{asked(0, "microvm@none.service", loadName("microvm@none.service", "host-api-key")), "is no VM's unit"},
		{asked(0, "evil@test-vm.service", loadName("evil@test-vm.service", "host-api-key")), "is no VM's unit"},
		{asked(0, "twin.service", loadName("twin.service", "host-api-key")), "more than one VM: " + filepath.Join(f.o.VMs, "twin-a.yaml") + ", " + filepath.Join(f.o.VMs, "twin-b.yaml")},
	} {
		spec, _, ps := f.b.ofLoad(c.p)
		check(t, spec, ps, c.reason)
	}
}

func TestWhatMayBeLoaded(t *testing.T) {
	f := setUp(t)
	spec, ps := f.b.vms.named("other")
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	for id, want := range map[string][2]string{
		"host-api-key": {}, credential.TransferList: {},
		"host-file":   {"which systemd reads itself", "LoadCredential=host-file:/run/secrets/x"},
		"host-enc":    {"which systemd reads itself", "LoadCredentialEncrypted=host-enc:/etc/x"},
		"host-unit":   {"its source is the unit's own", "var: GENERATOR/FILE"},
		"HOST-API":    {"declares no credential of this name", "declare it under credentials:"},
		"host-apikey": {"declares no credential of this name", "did you mean host-api-key?"},
	} {
		ps := loadable(spec, id)
		if want[0] == "" && len(ps) > 0 || want[0] != "" && (len(ps) == 0 || !strings.Contains(ps[0].Message, want[0]) || !strings.Contains(ps[0].Hint, want[1])) {
			t.Errorf("%s: %v, want %q", id, ps, want)
		}
	}
}

// A file that changes counts at once, without a look at all of them.
func TestTheFileOfNow(t *testing.T) {
	f := setUp(t)
	p := asked(0, foreign, loadName(foreign, "x"))
	if _, _, ps := f.b.ofLoad(p); len(ps) > 0 {
		t.Fatal(ps)
	}
	f.vm("other", "unit: moved.service\n# longer\n")
	if _, _, ps := f.b.ofLoad(p); len(ps) == 0 {
		t.Error("the unit that the file named before is still answered")
	}
	if _, _, ps := f.b.ofLoad(asked(0, "moved.service", loadName("moved.service", "x"))); len(ps) > 0 {
		t.Error(ps)
	}
	if err := os.Remove(filepath.Join(f.o.VMs, "other.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, _, ps := f.b.ofLoad(asked(0, "moved.service", loadName("moved.service", "x"))); len(ps) == 0 {
		t.Error("a file that is gone is still answered")
	}
}

func TestTake(t *testing.T) {
	f := setUp(t)
	got, err := f.take("test-vm")
	want := map[string]string{"host-api-key": "the api key", "host-db-password": "the password"}
	if err != nil || !maps.Equal(got, want) {
		t.Fatalf("%v %v", got, err)
	}
	if want := []string{"release " + own + " test-vm host-api-key v1", "release " + own + " test-vm host-db-password v1"}; !slices.Equal(f.log.said(), want) {
		t.Errorf("%q", f.log.said())
	}
	// Once for each start.
	var refused *client.RefusedError
	if _, err = f.take("test-vm"); !errors.As(err, &refused) || !strings.Contains(err.Error(), "given its values already") {
		t.Errorf("%v", err)
	}
	if _, err = f.as(ownUser, own, second2).take("test-vm"); err != nil {
		t.Errorf("the next start: %v", err)
	}
}

// Each reason for which a runner gets nothing, all at once, in words, and on record.
func TestTakeIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(f *fixture)
		want   []string
		retry  bool
	}{
		"generator": {func(f *fixture) { f.vm("test-vm", "credentials:\n  a: {var: none/x}\n  b: {var: gen/api-key}\n") }, []string{"a: there is no generator none in the vars of the test"}, false},
		"file":      {func(f *fixture) { f.vm("test-vm", "credentials:\n  a: {var: gen/none}\n  b: {var: gen/empty}\n") }, []string{"a: there is no gen/none in the vars of the test", "b: its value, gen/empty, is empty"}, false},
		"large": {func(f *fixture) {
			f.store.set("gen", map[string]string{"api-key": strings.Repeat("x", credential.MaxValue+1), "db-password": "x"})
		}, []string{"host-api-key: its value has 1048577 bytes, and a guest takes 1048576"}, false},
		"total": {func(f *fixture) {
			f.store.set("gen", map[string]string{"api-key": strings.Repeat("x", credential.MaxValue), "db-password": "x"})
		}, []string{"the values have 1048577 bytes together"}, false},
		"log": {func(f *fixture) { f.log.err = errors.New("no space left on device") }, []string{"it cannot be put on record: no space left on device"}, true},
		"no store": {func(f *fixture) {
			all := f.o.Settings
			f.b.o.Settings = func() (*Settings, error) { s, err := all(); s.Store = nil; return s, err }
		}, []string{"this host has no store for var: sources"}, false},
		"host file": {func(f *fixture) {
			f.b.o.Settings = func() (*Settings, error) { return nil, errors.New("vmcred.yaml is broken") }
		}, []string{"vmcred.yaml is broken"}, false},
		"unit": {func(f *fixture) { f.as(ownUser, "evil@test-vm.service", first1) }, []string{"evil@test-vm.service may not have"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			c.change(f)
			got, err := f.take("test-vm")
			var refused *client.RefusedError
			var failed *client.FailedError
			if errors.As(err, &failed) != c.retry || errors.As(err, &refused) == c.retry || got != nil {
				t.Fatalf("%v %v", got, err)
			}
			var said []string
			if refused != nil {
				for _, p := range refused.Problems {
					said = append(said, strings.TrimPrefix(p.Credential+": "+p.Message, ": "))
				}
			} else {
				said = []string{err.Error()}
			}
			record := strings.Join(f.log.said(), "\n")
			for _, want := range c.want {
				if !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, want) }) {
					t.Errorf("%q is not said: %q", want, said)
				}
				_, words, _ := strings.Cut(want, ": ")
				if name != "log" && name != "host file" && !strings.Contains(record, words) {
					t.Errorf("%q is not on record:\n%s", words, record)
				}
			}
			if len(said) != len(c.want) || strings.Contains(record, "release") {
				t.Errorf("%q, on record:\n%s", said, record)
			}
		})
	}
}

// After a failure the same start may try again: nothing had left.
func TestTakeAgainAfterAFailure(t *testing.T) {
	f := setUp(t)
	f.log.err = errors.New("full")
	if _, err := f.take("test-vm"); err == nil {
		t.Fatal("nothing was on record, and it was handed out")
	}
	f.log.mu.Lock()
	f.log.err = nil
	f.log.mu.Unlock()
	if _, err := f.take("test-vm"); err != nil {
		t.Error(err)
	}
}

func TestStatusIsRoots(t *testing.T) {
	f := setUp(t)
	if _, err := f.take("test-vm"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.client().Status(t.Context(), "test-vm"); err == nil || !strings.Contains(err.Error(), "only root") {
		t.Errorf("%v", err)
	}
	now := func() map[string]wire.Now {
		t.Helper()
		got, err := f.as(0, own, first1).client().Status(t.Context(), "test-vm")
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]wire.Now{}
		for _, d := range got {
			out[d.Host] = d.Now
		}
		return out
	}
	if got := now(); !maps.Equal(got, map[string]wire.Now{"host-api-key": wire.Same, "host-db-password": wire.Same}) {
		t.Errorf("%v", got)
	}
	f.store.set("gen", map[string]string{"api-key": "another"})
	if got := now(); got["host-api-key"] != wire.Changed {
		t.Errorf("%v", got)
	}
	f.store.mu.Lock()
	delete(f.store.all, "gen")
	f.store.mu.Unlock()
	if got := now(); got["host-api-key"] != wire.Gone {
		t.Errorf("%v", got)
	}
	if got, err := f.as(0, own, second2).client().Status(t.Context(), "test-vm"); err != nil || len(got) != 0 {
		t.Errorf("a start that was given nothing: %v %v", got, err)
	}
}

func TestHealth(t *testing.T) {
	f := setUp(t)
	h, err := f.as(12345, "", "").client().Health(t.Context())
	if err != nil || h.Log != "/x/audit.log" || h.Store != "the vars of the test" || h.Version != "test" || h.PID != os.Getpid() || h.Fault != "" {
		t.Errorf("%+v %v", h, err)
	}
	f.log.err = errors.New("no space left on device")
	_, _ = f.as(ownUser, own, first1).take("test-vm")
	if h, err = f.client().Health(t.Context()); err != nil || h.Fault != "no space left on device" || h.Refused != 1 || h.Starts != 0 {
		t.Errorf("%+v %v", h, err)
	}
}
