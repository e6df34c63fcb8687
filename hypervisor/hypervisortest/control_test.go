// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"context"
	"os/exec"
	"testing"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/qemu"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// TestSuiteSeesAFaultyDelivery is a control with real VMs: a payload that was
// changed on its way must not pass.
func TestSuiteSeesAFaultyDelivery(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED, nothing was measured: needs qemu-system-x86_64 (apt install qemu-system-x86)")
	}
	s := newSuite(t, Factory{
		Driver: func(t *testing.T) hypervisor.Driver { return qemu.New(qemu.Options{}) },
		Spec:   func(sp *vm.Spec) { sp.Hypervisor, sp.QEMU = "qemu", vm.QEMU{Machine: "q35", Accel: "tcg"} },
	})
	items := append(three(), filled("BY_FW_CFG", 20_000))
	text := func(v string) secret.Rope { return secret.Rope{{Text: v}} }
	cases := map[string]func(p *delivery.Payload){
		"nothing": func(*delivery.Payload) {}, // what is not changed must pass
		"a byte more in a string": func(p *delivery.Payload) {
			r := p.SMBIOS[0] // before both NULs at its end
			p.SMBIOS[0] = append(r[:len(r)-2:len(r)-2], secret.Piece{Text: "x\x00\x00"})
		},
		"a count too low": func(p *delivery.Payload) {
			p.SMBIOS[0] = append(text("\x0b\x05\x00\x0b\x01"), p.SMBIOS[0][1:]...)
		},
		"another structure": func(p *delivery.Payload) { p.SMBIOS[0] = text("\x0b\x05\x00\x0b\x01other\x00\x00") },
		"a file cut":        func(p *delivery.Payload) { p.FwCfg[0].Rope = text("vvvv") },
		"an empty file":     func(p *delivery.Payload) { p.FwCfg[0].Rope = nil },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			l, g := s.launchOf(t, items, "", credentialsOldest)
			deliver := l.Deliver
			l.Deliver = func(ctx context.Context) (*delivery.Payload, error) {
				p, err := deliver(ctx)
				if err == nil {
					change(p)
				}
				return p, err
			}
			s.start(t, l, g)
			g.finish(t)
			faults := compare(items, credentialsOldest, s.offers(), g.report(t))
			if name == "nothing" && len(faults) > 0 || name != "nothing" && len(faults) == 0 {
				t.Errorf("faults %q", faults)
			}
			t.Logf("%q", faults)
		})
	}
}
