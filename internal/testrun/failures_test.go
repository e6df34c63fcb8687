// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor/standin"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/leak"
)

// failure is a start of cloud-hypervisor that fails.
type failure struct {
	more string // lines of the VM's file
	// prepare makes on this host what the lines need; nil: nothing.
	prepare func(t *testing.T, h *host)
	code    int
	says    string // a part of the message
	real    bool   // a stand-in does not fail like that
	echo    bool   // the hypervisor repeats every request in its refusal
}

// failures are those at each step: before anything starts, at vm.create, at vm.boot.
func failures() map[string]failure {
	extra := func(json string) string { return "cloud-hypervisor: {extra: " + json + "}\n" }
	const created, booted = "vm.create was refused with status", "vm.boot was refused"
	return map[string]failure{
		"a kernel that is none": {code: 78, says: "boot.kernel", prepare: func(t *testing.T, h *host) {
			if err := os.WriteFile(h.kernel(), []byte(strings.Repeat("no kernel ", 1000)), 0o644); err != nil {
				t.Fatal(err)
			}
		}},
		"a disk that is missing":             {more: "disks: [{path: /nowhere/disk.img}]\n", code: 78, says: "/nowhere/disk.img"},
		"a tap that is none":                 {more: "interfaces: [{type: tap, id: lo}]\n", code: 78, says: "no tap"},
		"more than the body":                 {code: 78, says: "51,200", prepare: fillBody},
		"a number that is a text":            {more: extra(`{rng: {src: 5}}`), code: 1, says: created},
		"a list that is a number":            {more: extra(`{rate_limit_groups: 7}`), code: 1, says: created, real: true},
		"a refusal that repeats the request": {code: 1, says: created, echo: true},
		"a disk that is no qcow2": {more: "disks: [{path: DIR/disk, format: qcow2}]\n", code: 1, says: booted, real: true, prepare: func(t *testing.T, h *host) {
			h.sparse(t, "disk", 1<<20)
		}},
		"a kernel without an entry": {code: 1, says: booted, real: true, prepare: func(t *testing.T, h *host) {
			b, err := os.ReadFile("/proc/self/exe") // an ELF file all the same
			if err == nil {
				err = os.WriteFile(h.kernel(), b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
		"no randomness":      {more: extra(`{rng: {src: /nowhere/random}}`), code: 1, says: booted, real: true},
		"no huge pages":      {more: extra(`{memory: {hugepages: true, hugepage_size: 1073741824}}`), code: 1, says: booted, real: true},
		"no persistent file": {more: extra(`{pmem: [{file: /nowhere/pmem}]}`), code: 1, says: booted, real: true},
		"no TPM":             {more: extra(`{tpm: {socket: /nowhere/tpm}}`), code: 1, says: booted, real: true},
	}
}

// fillBody gives the host a value that the body of one request has no room for.
func fillBody(t *testing.T, h *host) {
	t.Helper()
	c := credentialFile{"host-too-much", text(50_000)}
	h.all = append(h.all, c)
	h.write(t, filepath.Join(h.creds, c.name), c.value)
}

// Whatever call of a start fails, what is said of it holds no value, and no value
// went anywhere else: each start is traced.
func TestAFailedCallSaysNoValue(t *testing.T) {
	needRoot(t, "it traces a process that makes itself undumpable")
	needCommands(t, "strace")
	onCloudHypervisor(t, func(t *testing.T, k kind) {
		for name, f := range failures() {
			if f.real && !k.real {
				continue
			}
			t.Run(name, func(t *testing.T) { f.see(t, k) })
		}
	})
}

func (f failure) see(t *testing.T, k kind) {
	t.Helper()
	if f.echo {
		k.copied = "/proc/self/exe"
	}
	h := newHostOf(t, k, 0, k.few())
	makeUser(t, h.name)
	h.more = strings.ReplaceAll(f.more, "DIR", h.dir)
	if f.echo {
		if err := os.WriteFile(filepath.Join(h.bin(), h.program)+echoes, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if f.prepare != nil {
		f.prepare(t, h)
	}
	args, env := h.bySource(t, "--credentials", "")
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	meant := k.payload()
	if f.echo { // what it answers is on the connection, too
		meant = append(meant, leak.Meant{Name: "the answer", Is: func(p leak.Place) bool {
			return p.Target == leak.ToSocket && filepath.Dir(p.Exe) == h.bin()
		}})
	}
	s := h.search(t, meant...)
	out, said, code := traceToEnd(t, s, leak.Trace{Argv: append([]string{path, "run", h.file()}, args...), Env: h.env(env...), Dir: "/"})
	if code != f.code || !strings.Contains(said, f.says) || strings.Contains(out, probe.Last) {
		t.Errorf("it exits %d, want %d with %q: %s", code, f.code, f.says, said)
	}
	wantClean(t, s)
	sent := slices.ContainsFunc(s.Report().Meant, func(f leak.Finding) bool { return f.Meant != auditKeyName })
	if sent != (code == 1) {
		t.Errorf("values were sent: %v", sent)
	}
	h.clean(t)
}

// sparse makes an empty disk that every user may write.
func (h *host) sparse(t *testing.T, name string, size int64) {
	t.Helper()
	path := filepath.Join(h.dir, name)
	h.write(t, path, nil)
	if err := errors.Join(os.Truncate(path, size), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
}

// echoes is what the name of a file beside the hypervisor ends with that makes it
// repeat every request which has a body.
const echoes = ".echoes"

// playEcho is a hypervisor whose errors say what they are about, as the real one's
// do with a part of it.
func playEcho() int {
	if len(os.Args) == 2 { // --version
		return standin.Main(os.Args[1:], standin.Options{})
	}
	l, err := net.FileListener(os.NewFile(3, "api"))
	if err != nil {
		return 1
	}
	c, err := l.Accept()
	if err != nil {
		return 1
	}
	for r := bufio.NewReader(c); ; {
		length := 0
		for line := "-"; line != "\r\n"; {
			if line, err = r.ReadString('\n'); err != nil {
				return 0
			}
			if n, ok := strings.CutPrefix(line, "Content-Length: "); ok {
				length, _ = strconv.Atoi(strings.TrimSpace(n))
			}
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(r, body); err != nil {
			return 1
		}
		if length == 0 {
			fmt.Fprint(c, "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}")
			continue
		}
		text := `["` + strings.ReplaceAll(string(body), `"`, "'") + `"]`
		fmt.Fprintf(c, "HTTP/1.1 400 \r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	}
}
