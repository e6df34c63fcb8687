// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	port          = 9999
	readyString   = "io.systemd.credential:vmm.notify_socket=vsock-stream:2:9999"
	readyIsNoCred = "io.systemd.credential:vmm.notify_socket2=vsock-stream:2:9999"
)

func binaryOf(address string) string {
	return "io.systemd.credential.binary:vmm.notify_socket=" + base64.StdEncoding.EncodeToString([]byte(address))
}

// host listens where the guest's port arrives, and keeps what was said.
type host struct {
	listener net.Listener
	receive  func(net.Conn) []byte // one message; the caller closes
	started  time.Time

	mu    sync.Mutex
	open  []net.Conn
	said  []string
	after []time.Duration
}

// oneRead is what a relay does that does not wait for end of file.
func oneRead(c net.Conn) []byte {
	b := make([]byte, 128<<10)
	n, _ := c.Read(b)
	return b[:n]
}

func untilEnd(c net.Conn) []byte {
	var b bytes.Buffer
	_, _ = b.ReadFrom(c)
	return b.Bytes()
}

func newHost(t *testing.T, path string, receive func(net.Conn) []byte, keep bool) *host {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{listener: l, receive: receive, started: time.Now()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h.serve(c, keep)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, c := range h.open {
			_ = c.Close()
		}
	})
	return h
}

func (h *host) serve(c net.Conn, keep bool) {
	message := h.receive(c)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.said = append(h.said, string(message))
	h.after = append(h.after, time.Since(h.started))
	if keep {
		h.open = append(h.open, c)
		return
	}
	_ = c.Close()
}

// heard is what arrived in order. The VMM has ended, so nothing more will.
func (h *host) heard() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.said)
}

// machine is a VMM with a vsock device whose ports are unix sockets.
type machine struct {
	name string
	// need skips the test where there is none.
	need func(t *testing.T)
	// run boots the guest until it ends, and returns its console.
	run func(t *testing.T, vsock, cmdline string, oem []string) []byte
	// refuses says whether the guest hears that nobody listens.
	refuses bool
	// halfCloses says whether the host sees the guest's end of sending.
	halfCloses bool
}

func machines() []machine {
	return []machine{
		{"cloud-hypervisor", needCloudHypervisor, runCloudHypervisor, true, true},
		{"qemu with vhost-device-vsock", needVhost, runQEMU, false, false},
	}
}

func onEachMachine(t *testing.T, test func(t *testing.T, m machine)) {
	for _, m := range machines() {
		t.Run(m.name, func(t *testing.T) {
			m.need(t)
			test(t, m)
		})
	}
}

func needCloudHypervisor(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("cloud-hypervisor"); err != nil {
		t.Skip("SKIPPED, nothing was measured: needs cloud-hypervisor on PATH")
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("SKIPPED, nothing was measured: needs KVM: %v", err)
	}
	_ = f.Close()
}

func needVhost(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("vhost-device-vsock"); err != nil {
		t.Skip("SKIPPED, nothing was measured: needs vhost-device-vsock on PATH")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		lack(t, "this test needs qemu-system-x86_64: install the package qemu-system-x86")
	}
}

// runCloudHypervisor gives the strings on the command line: they are no secrets.
func runCloudHypervisor(t *testing.T, vsock, cmdline string, oem []string) []byte {
	t.Helper()
	serial := filepath.Join(t.TempDir(), "serial")
	args := []string{
		"--kernel", Build(t), "--cmdline", cmdline, "--cpus", "boot=1", "--memory", "size=128M",
		"--console", "off", "--serial", "file=" + serial, "--vsock", "cid=3,socket=" + vsock,
	}
	if len(oem) > 0 {
		args = append(args, "--platform", "oem_strings=["+strings.Join(oem, ",")+"]")
	}
	finish(t, "cloud-hypervisor", args...)
	return contents(t, serial)
}

func runQEMU(t *testing.T, vsock, cmdline string, oem []string) []byte {
	t.Helper()
	control := filepath.Join(t.TempDir(), "vhost")
	daemon := exec.Command("vhost-device-vsock", "--vm", "guest-cid=3,socket="+control+",uds-path="+vsock)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	}()
	awaitSocket(t, control)
	args := []string{
		"-object", "memory-backend-memfd,id=m,size=128M,share=on", "-machine", "memory-backend=m",
		"-chardev", "socket,id=c,path=" + control, "-device", "vhost-user-vsock-pci,chardev=c",
	}
	return boot(t, cmdline, append(args, smbiosArgs(oem)...)...)
}

func smbiosArgs(oem []string) []string {
	if len(oem) == 0 {
		return nil
	}
	return []string{"-smbios", "type=11,value=" + strings.Join(oem, ",value=")}
}

// awaitSocket returns once somebody listens at path. The daemon says nothing then,
// and a connection to try it would be taken for the VMM's.
func awaitSocket(t *testing.T, path string) {
	t.Helper()
	tick, late := time.NewTicker(time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !listens(t, path) {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("nobody listens at %s after a minute", path)
		}
	}
}

func listens(t *testing.T, path string) bool {
	t.Helper()
	const acceptsConnections = "00010000" // proc_net_unix(5): the flag __SO_ACCEPTCON
	for line := range strings.Lines(string(contents(t, "/proc/net/unix"))) {
		f := strings.Fields(line)
		if len(f) == 8 && f[3] == acceptsConnections && f[7] == path {
			return true
		}
	}
	return false
}

func finish(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func contents(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// say boots the guest with these words and strings and returns its report and
// what the host heard.
func (m machine) say(t *testing.T, receive func(net.Conn) []byte, keep bool, words string, oem ...string) (*Report, *host) {
	t.Helper()
	vsock := filepath.Join(t.TempDir(), "v")
	Build(t) // now, so that the host's clock does not count it
	h := newHost(t, fmt.Sprintf("%s_%d", vsock, port), receive, keep)
	out := m.run(t, vsock, words, oem)
	r, err := Parse(bytes.NewReader(out))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return r, h
}

func messages(end Ending, texts ...string) []Message {
	var out []Message
	for _, s := range texts {
		out = append(out, Message{s, end})
	}
	return out
}

func TestReadyArrives(t *testing.T) {
	onEachMachine(t, func(t *testing.T, m machine) {
		for name, s := range map[string]string{"as text": readyString, "as base64": binaryOf("vsock-stream:2:9999")} {
			t.Run(name, func(t *testing.T) {
				r, h := m.say(t, oneRead, false, WordReady, "first", readyIsNoCred, s)
				want := []string{MessageActive, MessageReady}
				if got := h.heard(); !slices.Equal(got, want) {
					t.Fatalf("the host heard %q, want %q; the guest %+v", got, want, r.Ready)
				}
				if !r.SaidReady() || r.Ready.CID != 2 || r.Ready.Port != port || !slices.Equal(r.Ready.Messages, messages(Closed, want...)) {
					t.Errorf("the guest reports %+v", r.Ready)
				}
				t.Logf("READY=1 %v after the VMM was started", h.after[1].Round(100*time.Microsecond))
			})
		}
	})
}

// A guest that reads a part of the structure never says that it is ready.
func TestReadyNeedsTheWholeTable(t *testing.T) {
	filler := strings.Repeat("x", 100)
	before := 5 + len(filler) + 1 // the structure's bytes before the address
	onEachMachine(t, func(t *testing.T, m machine) {
		for name, c := range map[string]struct {
			cut            int
			found, invalid bool
			heard          int
		}{
			"nothing of it":      {cut: before},
			"a part of its name": {cut: before + 30},
			"no port":            {cut: before + len(readyString) - 4, found: true, invalid: true},
			"all of it":          {cut: before + len(readyString), found: true, heard: 2},
		} {
			t.Run(name, func(t *testing.T) {
				r, h := m.say(t, oneRead, false, WordReady+" "+WordCut(c.cut), filler, readyString)
				if r.Ready.Found != c.found || r.Ready.Invalid != c.invalid || r.SaidReady() != (c.heard > 0) {
					t.Errorf("the guest reports %+v", r.Ready)
				}
				if n := len(h.heard()); n != c.heard {
					t.Errorf("%d messages, want %d", n, c.heard)
				}
				if n := len(r.OEM()[0].Strings); n != 2 {
					t.Errorf("the report itself has %d strings", n)
				}
			})
		}
	})
}

// What a guest that is taken over can say, byte for byte; none has a limit but the host's.
func TestHostileMessagesArrive(t *testing.T) {
	hostile := "MAINPID=1\nSTATUS=\x1b[2J\x00\xff%41 " + "\n"
	long := "STATUS=" + strings.Repeat("long", 1024)
	onEachMachine(t, func(t *testing.T, m machine) {
		words := []string{WordReady, WordSay(hostile), WordSay(long[:1000]), WordSay(""), WordFlood(3)}
		want := []string{MessageActive, hostile, long[:1000], "", "STATUS=flood 1", "STATUS=flood 2", "STATUS=flood 3", MessageReady}
		receive := oneRead
		if m.halfCloses {
			// Only then can a host know where a message of several packets ends.
			words, receive = append(words, WordHalfClose), untilEnd
			words[2], want[2] = WordSay(long), long
		} else {
			words, want = slices.Delete(words, 3, 4), slices.Delete(want, 3, 4)
		}
		r, h := m.say(t, receive, false, strings.Join(words, " "), readyString)
		if got := h.heard(); !slices.Equal(got, want) {
			t.Errorf("the host heard %q, want %q", got, want)
		}
		if !slices.Equal(r.Ready.Messages, messages(Closed, want...)) {
			t.Errorf("the guest reports %+v", r.Ready)
		}
	})
}

func TestGuestWaitsForTheHostButNotForEver(t *testing.T) {
	onEachMachine(t, func(t *testing.T, m machine) {
		r, h := m.say(t, oneRead, true, WordReady+" "+WordPatience(3), readyString)
		if got := h.heard(); !slices.Equal(got, []string{MessageActive}) {
			t.Errorf("the host heard %q", got)
		}
		if !slices.Equal(r.Ready.Messages, messages(TimedOut, MessageActive)) {
			t.Errorf("the guest reports %+v", r.Ready)
		}
	})
}

// Whether a guest hears that nobody listens differs, and a host should know.
func TestNobodyListens(t *testing.T) {
	nobody := strings.Replace(readyString, "9999", "9998", 1)
	onEachMachine(t, func(t *testing.T, m machine) {
		words, want := WordReady+" "+WordPatience(1), messages(TimedOut, MessageActive)
		if m.refuses {
			words, want = WordReady, messages(Refused, MessageActive, MessageReady)
		}
		r, _ := m.say(t, oneRead, false, words, nobody)
		if !slices.Equal(r.Ready.Messages, want) {
			t.Errorf("the guest reports %+v", r.Ready)
		}
	})
}

// Needs no vsock device, so it runs wherever QEMU is.
func TestGuestLooksForAnAddress(t *testing.T) {
	value := func(v string) string { return "io.systemd.credential:vmm.notify_socket=" + v }
	binary := binaryOf("vsock-stream:2:9999")
	for name, c := range map[string]struct {
		oem     []string
		invalid bool
	}{
		"no strings":         {nil, false},
		"another credential": {[]string{readyIsNoCred, "x" + readyString}, false},
		"nothing":            {[]string{value("")}, true},
		"another scheme":     {[]string{value("vsock-dgram:2:9999")}, true},
		"no port":            {[]string{value("vsock-stream:2:")}, true},
		"no context":         {[]string{value("vsock-stream::9999")}, true},
		"more":               {[]string{value("vsock-stream:2:9999:1")}, true},
		"above 32 bits":      {[]string{value("vsock-stream:2:4294967296")}, true},
		"long":               {[]string{value("vsock-stream:2:9999" + strings.Repeat("9", 100))}, true},
		"no base64":          {[]string{strings.Replace(binary, "Q==", "!==", 1)}, true},
		"no padding":         {[]string{strings.TrimSuffix(binary, "==")}, true},
		"the first counts":   {[]string{value("other"), readyString}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Parse(bytes.NewReader(boot(t, WordReady, smbiosArgs(c.oem)...)))
			if err != nil {
				t.Fatal(err)
			}
			if r.Ready == nil || r.Ready.Found != c.invalid || r.Ready.Invalid != c.invalid {
				t.Errorf("%+v", r.Ready)
			}
		})
	}
	r, err := Parse(bytes.NewReader(boot(t, WordReady, "-smbios", "type=1,product="+readyString)))
	if err != nil || r.Ready == nil || r.Ready.Found {
		t.Errorf("in another structure: %+v, %v", r, err)
	}
	_, err = Parse(bytes.NewReader(boot(t, WordReady, smbiosArgs([]string{readyString})...)))
	if err == nil || !strings.Contains(err.Error(), "no-vsock-device") {
		t.Errorf("without a device: %v", err)
	}
}
