// SPDX-License-Identifier: Apache-2.0

package standin_test

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// What the probe guest says of the strings "io.systemd.credential:A=b" and "x,y".
const report = `
probe: begin 1
probe: platform cloud-hypervisor
probe: cmdline at=0x00020000 bytes=0 sha256=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
probe: smbios anchor=_SM3_ at=0x000f0000 table=0x000f0018 bytes=144 structures=0
probe: structure type=0 handle=0x0001 bytes=40 strings=2
probe: structure type=1 handle=0x0002 bytes=62 strings=2
probe: structure type=11 handle=0x0003 bytes=36 count=2 strings=2
probe: string handle=0x0003 index=1 bytes=25 sha256=2d226a70eaee5d80dc9fdcce60a0ee2a194b1a25941acf0c55bca0decd0872a9
probe: string handle=0x0003 index=2 bytes=3 sha256=968e772cf168b7f17f3fbd00e6e1c8b4afb8db2f0c1548d9928f3c3d7a758a75
probe: structure type=127 handle=0x0004 bytes=6 strings=0
probe: fw_cfg none
probe: end
`

func TestPowerOff(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 1)
		m.check(t, create(config("", `,"platform":{"oem_strings":["io.systemd.credential:A=b","x,y"]}`)))
		m.check(t, ok("PUT vm.boot"))
		m.wantEnd(t, starting, booting, booted, shutdown, deleted, ended)
		<-m.serial.ended
		got, _ := m.serial.text()
		if got != report {
			t.Errorf("the guest says %s", got)
		}
		if r, err := probe.Parse(strings.NewReader(got)); err != nil || len(r.OEM()) != 1 {
			t.Errorf("%v in %s", err, got)
		}
	})
}

// Strings that a driver must never send, and what becomes of them.
func TestStrings(t *testing.T) {
	many := func(n int) string { return `"a"` + strings.Repeat(`,"a"`, n-1) }
	const cut = "\nprobe: error smbios-structure-cut\n"
	cases := []struct{ name, strings, line string }{
		{"256", many(256), "bytes=518 count=0 strings=256\n"},
		{"an empty one", `"a","","b"`, "bytes=8 count=3 strings=1\n"},
		{"a first one that is empty", `"","b"`, "type=11 handle=0x0003 bytes=6 count=2 strings=0" + cut},
		{"a NUL", `"a","x\u0000y","b"`, "bytes=14 count=3 strings=4\n"},
		{"bytes", `"\t\u00e9\n\u001b"`, "index=1 bytes=5 "},
	}
	onBoth(t, func(t *testing.T, p program) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				m := start(t, p, 1)
				m.check(t, create(config("hang", `,"platform":{"oem_strings":[`+c.strings+`]}`)))
				m.check(t, ok("PUT vm.boot"))
				m.serial.await(t, probe.Last)
				if got, _ := m.serial.text(); !strings.Contains(got, c.line) {
					t.Errorf("no %q in %s", c.line, got)
				}
				m.finish(t, starting, booting, booted, shutdown, deleted, ended)
			})
		}
	})
}

func TestNoise(t *testing.T) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 1)
		m.check(t, create(config("noise a=b", "")))
		m.check(t, ok("PUT vm.boot"))
		m.wantEnd(t, starting, booting, booted, shutdown, deleted, ended)
		<-m.serial.ended
		got, _ := m.serial.text()
		if !bytes.HasPrefix([]byte(got), every) || !strings.Contains(got, "cmdline at=0x00020000 bytes=9 ") {
			t.Errorf("console %q", got)
		}
	})
}

// A guest that resets does so for ever, in the same process.
func TestReboot(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 1)
		m.check(t, create(config("reboot", "")))
		m.check(t, ok("PUT vm.boot"))
		m.serial.await(t, probe.Last)
		m.events.awaitTimes(t, `"rebooted"`, 3)
		m.alive(t)
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
		if code := m.end(t); code != 0 {
			t.Errorf("exit status %d", code)
		}
		got := m.kinds(t)
		first := []string{starting, booting, booted, "vm:rebooting", "vm:rebooted"}
		if len(got) < len(first)+4 || !slices.Equal(got[:len(first)], first) {
			t.Errorf("events %v", got)
		}
	})
}

func TestPowerButton(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 1)
		m.check(t, create(config("wait", "")))
		m.check(t, ok("PUT vm.boot"))
		m.serial.await(t, probe.Last)
		m.check(t, ok("PUT vm.power-button"))
		m.wantEnd(t, starting, booting, booted, shutdown, deleted, ended)
	})
}

func TestSignals(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
			m := start(t, p, 1)
			m.check(t, create(config("hang", "")))
			m.check(t, ok("PUT vm.boot"))
			m.serial.await(t, probe.Last)
			_ = m.cmd.Process.Signal(sig)
			m.wantEnd(t, starting, booting, booted, shutdown, deleted, ended)
		}
		m := start(t, p, 1)
		m.alive(t)
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
		m.wantEnd(t, starting, ended)
	})
}

// A client that goes, also half-way, ends nothing.
func TestVanishingClient(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 2)
		m.send(t, 1, "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 400\r\n\r\n{")
		_ = m.conns[1].Close()
		m.alive(t)
		m.finish(t, starting, ended)
	})
}

func TestEleventhConnection(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 11)
		const ping = "GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n"
		for i := range 10 {
			m.send(t, i, ping)
			if r := m.answer(t, i); r.status != 200 {
				t.Fatalf("connection %d: %+v", i, r)
			}
		}
		// What it sends is not waited for.
		r := m.answer(t, 10)
		if r.status != 503 || r.body != `{ "error": "Too many open connections" }` {
			t.Errorf("the eleventh: %+v", r)
		}
		m.finish(t, starting, ended)
	})
}

const overLimit = "{ \"error\": \"Request payload with size 51201 is larger than the limit of 51200 allowed by server.\nAll previous unanswered requests will be dropped.\" }"

func TestBodyLimit(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 1)
		body := m.fill(config("hang", ""))
		body += strings.Repeat(" ", 51_200-len(body))
		m.check(t, create(body))
		m.finish(t, starting, deleted, ended)

		m = start(t, p, 1)
		m.send(t, 0, "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 51201\r\n\r\n")
		if r := m.answer(t, 0); r.status != 400 || r.body != overLimit {
			t.Errorf("a byte too many: %+v", r)
		}
		// What follows is taken for headers, and given back.
		m.send(t, 0, strings.Repeat("v", 1024))
		if r := m.answer(t, 0); r.status != 400 || !strings.Contains(r.body, "Header: vvvv") {
			t.Errorf("the body: %+v", r)
		}
		m.send(t, 0, "GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n")
		if r := m.answer(t, 0); r.status != 400 {
			t.Errorf("a request after it: %+v", r)
		}
	})
}

// A client that writes everything before it reads blocks: nobody reads it.
func TestBodyFarOverLimit(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 1)
		_ = m.conns[0].SetWriteDeadline(time.Now().Add(time.Second))
		_, err := m.conns[0].Write([]byte("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 51201\r\n\r\n" + strings.Repeat("v", 4<<20)))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("writing: %v", err)
		}
		res, err := http.ReadResponse(m.readers[0], nil)
		if err != nil || res.StatusCode != 400 {
			t.Errorf("%v %v", res, err)
		}
	})
}

// A vhost-user daemon that is not there is waited for; the real program's minute
// is left out with -short.
func TestMissingVhostUser(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		least := shortWait
		if p.real {
			if testing.Short() {
				t.Skip("SKIPPED with -short: cloud-hypervisor waits for a minute")
			}
			least = time.Minute
		}
		m := start(t, p, 1)
		m.check(t, create(about(shared+","+payload+`,"fs":[{"tag":"a","socket":"DIR/none"}]`)))
		before := time.Now()
		m.check(t, step{"PUT vm.boot", "", 500, noBoot + `"Error from device manager","Cannot create virtio-fs device",…`})
		if took := time.Since(before); took < least {
			t.Errorf("it took %v, want %v", took, least)
		}
		m.finish(t, starting, booting, deleted, ended)
	})
}

func TestArguments(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		out, err := exec.Command(p.path, "--version").Output()
		if err != nil || !strings.HasPrefix(string(out), "cloud-hypervisor v53.0") || !strings.HasSuffix(string(out), "\nMigration Protocol Versions: 0\n") {
			t.Errorf("%q %v", out, err)
		}
		for args, want := range map[string]struct {
			code int
			text string
		}{
			"--version --nope":      {2, "error: unexpected argument '--nope' found"},
			"--api-socket":          {2, "error: a value is required for '--api-socket"},
			"--api-socket fd=x":     {1, "Error parsing --api-socket"},
			"--event-monitor fd=99": {1, "Error doing event monitor I/O"},
		} {
			out, err := exec.Command(p.path, strings.Fields(args)...).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != want.code || !strings.Contains(string(out), want.text) {
				t.Errorf("%s: %v %q", args, err, out)
			}
		}
	})
}
