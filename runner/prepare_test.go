// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/vm"
)

// guarded is a driver that also knows what a user may open.
type guarded struct {
	scripted
	access []vm.Problem
}

func (d *guarded) CheckAccess(*vm.Spec, hypervisor.Info, *launch.Identity) []vm.Problem {
	return d.access
}

func TestWhatIsMissingIsSaidOnce(t *testing.T) {
	gone := vm.Problem{Field: "disks[0].path", Message: "/x: no such file or directory"}
	closed := vm.Problem{Field: "boot.kernel", Message: "/k: this user may not read it", Hint: "chmod"}
	shut := vm.Problem{Field: closed.Field, Message: "/k: permission denied"}
	d := &guarded{scripted: scripted{problems: []vm.Problem{gone, shut}}}
	d.access = []vm.Problem{{Field: gone.Field, Message: gone.Message, Hint: "chmod"}, closed}
	o := Options{Spec: &vm.Spec{}, Driver: d, Identity: &launch.Identity{UID: uint32(os.Getuid() + 1), GID: 1}}
	if diff := cmp.Diff(vm.Problems{gone, closed}, Problems(o, hypervisor.Info{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Who stops a VM before it runs has stopped it: nothing was refused, whatever
// did not work any more because of that.
func TestStoppedWhileReading(t *testing.T) {
	d := &scripted{}
	f := setUp(t, d, map[string]string{"host-a": "x"})
	ctx, cancel := context.WithCancel(t.Context())
	open := f.o.Open
	f.o.Open = func(ctx context.Context, a *secret.Arena) (credential.Source, error) {
		cancel()
		return open(ctx, a)
	}
	if out, err := Run(ctx, f.o); err != nil || out != Ended || d.boots != 0 {
		t.Errorf("%v %v, %d boots", out, err, d.boots)
	}
}

// A source that cannot be opened says by its error whether another try may help. What is
// wrong for good comes first.
func TestOpenError(t *testing.T) {
	two := vm.Problems{{Message: "there is no g", Hint: "make it"}, {Message: "there is no h", Hint: "make it"}}
	down := &FailedError{Op: "ask", Err: errors.New("nobody answers")}
	for name, c := range map[string]struct {
		err      error
		problems []vm.Problem
		refused  int
		recorded int
	}{
		"refused":        {&RefusedError{Problems: two}, nil, 2, 2},
		"any other":      {errors.New("what is this"), nil, 1, 1},
		"failed":         {down, nil, 0, 1},
		"failed, and no": {down, []vm.Problem{{Message: "no kernel", Hint: "name it"}}, 1, 1},
	} {
		d := &scripted{problems: c.problems}
		f := setUp(t, d, map[string]string{"host-a": "x"})
		f.o.Open = func(context.Context, *secret.Arena) (credential.Source, error) { return nil, c.err }
		_, err := Run(t.Context(), f.o)
		var (
			refused *RefusedError
			failed  *FailedError
		)
		switch {
		case c.refused > 0 && (!errors.As(err, &refused) || len(refused.Problems) != c.refused):
			t.Errorf("%s: %v, want a refusal for %d reasons", name, err, c.refused)
		case c.refused == 0 && (errors.As(err, &refused) || !errors.As(err, &failed)):
			t.Errorf("%s: %v is no failure", name, err)
		}
		if len(f.record.lines) != c.recorded || d.boots != 0 {
			t.Errorf("%s: %d boots, on record: %q", name, d.boots, f.record.lines)
		}
	}
}

// versioned is a source whose values have versions.
type versioned struct{ credential.Source }

func (versioned) Version(name string) string { return "v-" + name }

// A version goes with its value into the record of the release, and of what runs.
func TestVersionIsRecorded(t *testing.T) {
	f := setUp(t, &scripted{}, map[string]string{"host-a": "x"})
	open := f.o.Open
	f.o.Open = func(ctx context.Context, a *secret.Arena) (credential.Source, error) {
		src, err := open(ctx, a)
		return versioned{src}, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ran state.Record
	f.o.Notify = func(s string) {
		if !strings.HasPrefix(s, "READY=1") {
			return
		}
		defer cancel()
		found, err := state.Read(f.o.Root, "a")
		if err != nil {
			t.Error(err)
			return
		}
		defer found.Close()
		ran = found.Record
	}
	began := time.Now()
	if _, err := Run(ctx, f.o); err != nil {
		t.Fatal(err)
	}
	if got := f.record.lines; len(got) != 1 || !strings.Contains(got[0], "v-host-a") {
		t.Errorf("on record: %q", got)
	}
	if len(ran.Delivered) != 1 || ran.Delivered[0].Version != "v-host-a" {
		t.Errorf("what runs: %+v", ran)
	}
	if ran.Read.Before(began) || !ran.Read.Before(ran.Started) {
		t.Errorf("it was read at %v, and started at %v", ran.Read, ran.Started)
	}
}
