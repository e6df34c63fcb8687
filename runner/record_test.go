// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/vm"
)

// What runs is written down when the VM counts as ready, names and lengths only;
// a new start of the guest is a new record, and the end removes it.
func TestRecord(t *testing.T) {
	const canary = "CANARY-91c2"
	d := &scripted{exits: []hypervisor.Exit{{Reboot: true}}}
	f := setUp(t, d, map[string]string{"host-a": canary})
	f.o.Spec.Static = []vm.Static{{Name: "CLUSTER", Value: "here"}}
	f.o.Spec.Console.Mode = vm.ConsoleSocket
	d.booted = func(boot int, _ *delivery.Payload) {
		if found, err := state.Read(f.o.Root, "a"); boot == 0 && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("before it runs: %+v %v", found, err)
		}
	}
	var records []state.Record
	ctx, cancel := context.WithCancel(t.Context())
	f.o.Notify = func(s string) {
		if !strings.HasPrefix(s, "READY=1") {
			return
		}
		found, err := state.Read(f.o.Root, "a")
		if err != nil {
			t.Error(err)
			cancel()
			return
		}
		defer found.Close()
		if records = append(records, found.Record); len(records) == 2 {
			cancel()
		}
	}
	if _, err := Run(ctx, f.o); err != nil {
		t.Fatal(err)
	}
	if len(records) != 2 || !records[1].Started.After(records[0].Started) {
		t.Fatalf("records: %+v", records)
	}
	r := records[0]
	if r.VM != "a" || r.File != "a.yaml" || r.Runner != state.Self() || r.VMM.PID != 1 || r.VMMUser != os.Geteuid() ||
		r.Hypervisor != "x" || r.HVVersion != "1" || r.Accel != "tcg" || r.Ready == nil || r.Ready.By != "boot" ||
		!strings.HasSuffix(r.Console, "/a/console.sock") || len(r.Delivered) != 2 {
		t.Errorf("%+v", r)
	}
	for _, want := range []state.Delivered{
		{Host: "host-a", Guest: "HOST_A", Bytes: len(canary), Channel: "smbios", Proven: state.Unknown},
		{Guest: "CLUSTER", Bytes: 4, Channel: "smbios", Proven: state.Unknown},
	} {
		if r.Delivered[0] != want && r.Delivered[1] != want {
			t.Errorf("%+v is not among %+v", want, r.Delivered)
		}
	}
	if _, err := state.Read(f.o.Root, "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after its end: %v", err)
	}
}
