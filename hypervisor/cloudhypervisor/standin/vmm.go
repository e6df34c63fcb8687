// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// vmm is the process: at most one configuration, at most one VM.
type vmm struct {
	options Options
	events  *monitor
	quit    chan struct{}
	leave   func() // closes quit

	mu     sync.Mutex
	config object         // nil: nothing created
	owned  bool           // a VM was made of it, if only to fail at its kernel
	guest  *guest         // nil: not running
	serial io.WriteCloser // open from create to shutdown
	vsock  net.Listener   // open while the VM is owned
	passed []*os.File     // descriptors of network devices
}

func newVMM(o Options, m *monitor) *vmm {
	quit := make(chan struct{})
	return &vmm{options: o, events: m, quit: quit, leave: sync.OnceFunc(func() { close(quit) })}
}

// end is what the process says before it exits.
func (v *vmm) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forget()
	v.events.say("vmm", "shutdown")
}

// forget drops VM and configuration.
func (v *vmm) forget() {
	if v.config == nil {
		return
	}
	if v.owned {
		v.stop()
	}
	v.closeSerial()
	v.config = nil
	v.events.say("vm", "deleted")
}

// accept keeps a configuration, also one that it then fails to set up.
func (v *vmm) accept(c object) error {
	if v.config != nil {
		return chain{alreadyCreated}
	}
	v.config = c
	if err := v.openSerial(); err != nil {
		return err
	}
	if c["landlock_enable"] == true {
		return landlock(c)
	}
	return nil
}

func (v *vmm) boot() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.owned {
		return chain{alreadyCreated}
	}
	v.events.say("vm", "booting")
	if v.config == nil {
		return chain{noConfig}
	}
	if err := v.openSerial(); err != nil {
		return err
	}
	if err := v.makeVM(); err != nil {
		return err
	}
	v.owned = true
	if err := v.load(); err != nil {
		return err
	}
	v.events.say("vm", "booted")
	v.run()
	return nil
}

// run starts the guest. Its end comes back to guestEnded.
func (v *vmm) run() {
	g := newGuest(v.config, v.serial)
	v.guest = g
	go func() {
		how := g.run()
		v.guestEnded(g, how)
	}()
}

// guestEnded: powered off, it ends the process; reset, it starts again as it was.
func (v *vmm) guestEnded(g *guest, how ending) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.guest != g {
		return // stopped meanwhile
	}
	if how == poweredOff {
		v.leave()
		return
	}
	if v.again() != nil {
		v.leave()
	}
}

// resetTime is how long a machine takes to build its devices anew. The real one's
// guest takes some of that time, too, before it says a word.
const resetTime = 200 * time.Millisecond

func (v *vmm) again() error {
	v.events.say("vm", "rebooting")
	if !v.owned {
		return chain{notCreated}
	}
	if v.guest != nil {
		v.guest.stop()
	}
	if err := v.load(); err != nil {
		return err
	}
	<-time.After(resetTime)
	v.run()
	v.events.say("vm", "rebooted")
	return nil
}

func (v *vmm) stop() {
	if v.guest != nil {
		v.guest.stop()
	}
	if v.vsock != nil {
		_ = v.vsock.Close() // and its file
	}
	v.guest, v.vsock, v.owned = nil, nil, false
	v.closeSerial()
	v.events.say("vm", "shutdown")
}

func (v *vmm) shutdown() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.owned {
		return chain{notRunning}
	}
	v.stop()
	return nil
}

func (v *vmm) delete() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forget()
	return nil
}

func (v *vmm) reboot() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.again()
}

func (v *vmm) powerButton() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.owned {
		return chain{notRunning}
	}
	if v.guest != nil {
		v.guest.press()
	}
	return nil
}

// addNetConfig adds a device before the boot; a running VM's are not played.
func (v *vmm) addNetConfig(n object) error {
	if v.config == nil {
		return chain{notCreated}
	}
	if v.owned {
		return chain{"the stand-in does not play hot-plugging"}
	}
	if err := validateNet(v.config, n); err != nil {
		return append(chain{invalid}, err.(chain)...)
	}
	v.config["net"] = append(v.config.list("net"), n)
	return nil
}
