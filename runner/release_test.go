// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/vm"
)

// record remembers what is recorded.
type record struct {
	lines []string
	err   error
}

func (r *record) Release(_ context.Context, vm string, all []Release) error {
	for _, c := range all {
		r.lines = append(r.lines, fmt.Sprintf("release %s %s %s %d %s %v%s", vm, c.Host, c.Guest, c.Bytes, c.Channel, c.Value, c.Version))
	}
	return r.err
}

func (r *record) Refuse(_ context.Context, vm string, all []Refusal) {
	for _, c := range all {
		r.lines = append(r.lines, fmt.Sprintf("refuse %s %s: %s", vm, c.Host, c.Reason))
	}
}

// It is on record before the driver has a single byte.
func TestRecordComesFirst(t *testing.T) {
	d := &scripted{exits: []hypervisor.Exit{{Reboot: true}, {Clean: true}}}
	f := setUp(t, d, map[string]string{"host-b": "1234", "host-a": "123"})
	f.o.Spec.Static = []vm.Static{{Name: "ENVIRONMENT", Value: "test"}}
	once := []string{"release a host-a HOST_A 3 smbios secret(3 bytes)", "release a host-b HOST_B 4 smbios secret(4 bytes)"}
	d.booted = func(boot int, _ *delivery.Payload) {
		if n := len(f.record.lines); n != 2*(boot+1) {
			t.Errorf("boot %d: %d records when the values are there", boot, n)
		}
	}
	if _, err := Run(t.Context(), f.o); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(f.record.lines, append(once, once...)) { // the guest rebooted: a new start
		t.Errorf("%q", f.record.lines)
	}
}

// No record, no secret; and a VM without secrets needs none.
func TestNoRecordNoSecret(t *testing.T) {
	cause := errors.New("the disk is full")
	for name, change := range map[string]func(*fixture){
		"the record fails": func(f *fixture) { f.record.err = cause },
		"nobody records":   func(f *fixture) { f.o.Recorder = nil },
	} {
		d := &scripted{exits: []hypervisor.Exit{{Clean: true}}}
		d.booted = func(int, *delivery.Payload) { t.Errorf("%s, and the values leave", name) }
		f := setUp(t, d, map[string]string{"host-a": "123"})
		change(f)
		_, err := Run(t.Context(), f.o)
		var failed *FailedError
		if !errors.As(err, &failed) || !errors.Is(err, cause) && !errors.Is(err, errNoRecorder) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := &scripted{exits: []hypervisor.Exit{{Clean: true}}}
	f := setUp(t, d, nil)
	f.o.Spec.Static, f.o.Recorder = []vm.Static{{Name: "ENVIRONMENT", Value: "test"}}, nil
	if _, err := Run(t.Context(), f.o); err != nil || d.boots != 1 {
		t.Errorf("without secrets: %v, %d boots", err, d.boots)
	}
}

func TestRefusalIsRecorded(t *testing.T) {
	f := setUp(t, &scripted{}, map[string]string{"host-a": "123", "host-empty": ""})
	f.o.Spec.Credentials = append(f.o.Spec.Credentials, vm.Credential{Host: "host-gone", Guest: "HOST_GONE", Source: vm.Source{Kind: vm.SourceUnit}})
	if _, err := Run(t.Context(), f.o); err == nil {
		t.Fatal("it is started")
	}
	if got := f.record.lines; len(got) != 2 || !strings.HasPrefix(got[0], "refuse a host-empty: ") || !strings.Contains(got[0], "its value is empty") || !strings.HasPrefix(got[1], "refuse a host-gone: ") {
		t.Errorf("%q", got)
	}
	f = setUp(t, &scripted{problems: []vm.Problem{{Message: "no"}}}, nil)
	if _, err := Run(t.Context(), f.o); err == nil || len(f.record.lines) > 0 {
		t.Errorf("without secrets: %v, %q", err, f.record.lines)
	}
}
