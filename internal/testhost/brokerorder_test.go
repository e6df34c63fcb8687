// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// outside is this machine's number of a unit's main process.
func (c *container) outside(t *testing.T, unit string) string {
	t.Helper()
	inside := strings.TrimSpace(c.do(t, "systemctl show --value --property=MainPID "+unit))
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		status, _ := os.ReadFile(p + "/status")
		_, ids, _ := strings.Cut(string(status), "\nNSpid:")
		ids, _, _ = strings.Cut(ids, "\n")
		groups, _ := os.ReadFile(p + "/cgroup")
		if f := strings.Fields(ids); len(f) > 1 && f[len(f)-1] == inside && strings.Contains(string(groups), unit) {
			return filepath.Base(p)
		}
	}
	t.Fatalf("process %s of %s is nowhere to be seen", inside, unit)
	return ""
}

// traced returns what a unit's main process asks of the kernel while do runs, a call a line.
func (c *container) traced(t *testing.T, unit, calls string, do func()) []string {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("strace is missing (apt install strace)")
		}
		t.Skip("SKIPPED, the order of a broker's calls: needs strace")
	}
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-s", "200", "-e", "trace="+calls, "-o", out, "-p", c.outside(t, unit))
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for attached := false; !attached; {
		if !lines.Scan() {
			t.Fatalf("strace has ended: %v", cmd.Wait())
		}
		attached = strings.Contains(lines.Text(), "attached")
	}
	go func() {
		for lines.Scan() {
		}
	}()
	do()
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait() // by the signal
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(b), "\n")
}

var synced = regexp.MustCompile(`f(data)?sync\(\d+\) += 0|f(data)?sync resumed>\) += 0`)

// testRecordFirst: the real program's records are on the disk before the first byte of a
// value goes, both ways; and a value goes nowhere else.
func testRecordFirst(t *testing.T, c *container) {
	// strace cannot even read it where it lies in secret memory: there it is known by its length.
	canary := "canary-7f3a91" + strings.Repeat("x", 764)
	has := func(line string) bool {
		wiped := strings.Contains(line, "pwrite64(") && strings.Contains(line, `"\0`)
		return !wiped && (strings.Contains(line, canary[:13]) || strings.Contains(line, ", 777)") || strings.Contains(line, "iov_len=777"))
	}
	c.put(t, "order", "key", canary)
	c.write(t, foreignVM, foreignFile(foreignUnit, "  host-a: {var: order/key}\n"))
	c.writeChecker(t, foreignUnit, "1min", "host-a")
	c.writeRefused(t, "  host-a: {var: order/key}\n")
	c.do(t, "systemctl restart "+brokerUnit)
	for name, step := range map[string]struct {
		do    func()
		value string // the call that has it first
		sent  string // the call that sends it
	}{
		"load":   {func() { c.do(t, "systemctl start "+foreignUnit) }, "write(", "write("},
		"runner": {func() { c.do(t, "systemctl start "+refusedUnit+" || :; systemctl stop "+refusedUnit) }, "writev(", "SCM_RIGHTS"},
	} {
		calls := c.traced(t, brokerUnit, "accept4,fsync,fdatasync,write,writev,sendmsg,sendto,pwrite64", step.do)
		accepted, durable, value, sent := -1, -1, -1, -1
		for i, line := range calls {
			switch {
			case has(line):
				if !strings.Contains(line, step.value) || value >= 0 {
					t.Errorf("%s: a value in a call where none belongs: %s", name, line)
				}
				value = i
			case value < 0 && strings.Contains(line, "accept4") && !strings.Contains(line, "EAGAIN"):
				accepted, durable = i, -1
			case value < 0 && synced.MatchString(line):
				durable = i
			}
			if sent < 0 && strings.Contains(line, step.sent) && (step.value != "write(" || has(line)) {
				sent = i
			}
		}
		if accepted < 0 || value < 0 || sent < 0 || durable < accepted || durable > value || durable > sent {
			t.Errorf("%s: asked at call %d, on the disk at %d, the value at %d, sent at %d:\n%s", name, accepted, durable, value, sent,
				strings.Join(calls[:min(len(calls), 200)], "\n"))
		}
	}
	if got := c.checked(t, foreignUnit); got["host-a"] != sumOf(canary) {
		t.Errorf("it was given %v", got)
	}
	status := c.do(t, fmt.Sprintf("cat /proc/$(systemctl show --value --property=MainPID %s)/status", brokerUnit))
	if locked := regexp.MustCompile(`VmLck:\s+[1-9]`); !locked.MatchString(status) {
		if limit := strings.TrimSpace(c.do(t, "ulimit -Hl")); limit == "unlimited" {
			t.Errorf("nothing is locked:\n%s", status)
		}
	}
	// Root's own processes without capabilities, as another service's, do not see its memory.
	pid := strings.TrimSpace(c.do(t, "systemctl show --value --property=MainPID "+brokerUnit))
	if out, err := c.try("setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all head -c 1 /proc/" + pid + "/environ; setpriv --bounding-set=-all head -c 1 /proc/" + pid + "/mem"); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("its memory is open: %v %s", err, out)
	}
}

// testNoCopy: what a broker handed out, both ways, is nowhere in its memory but in the locked
// pages that it is kept in for 30 s; those are closed even to root, where the kernel has
// secret memory.
func testNoCopy(t *testing.T, c *container) {
	value := rand.Text() + rand.Text()
	c.put(t, "copies", "key", value)
	c.write(t, foreignVM, foreignFile(foreignUnit, "  host-a: {var: copies/key}\n"))
	c.writeChecker(t, foreignUnit, "1min", "host-a")
	c.writeRefused(t, "  host-a: {var: copies/key}\n")
	c.do(t, "systemctl start "+foreignUnit+"; systemctl start "+refusedUnit+" || :; systemctl stop "+refusedUnit+"; systemctl reset-failed "+refusedUnit+" || :")
	if got := c.checked(t, foreignUnit); got["host-a"] != sumOf(value) {
		t.Fatalf("it was given %v", got)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(c.do(t, "systemctl show --value --property=MainPID "+brokerUnit)))
	if err != nil {
		t.Fatal(err)
	}
	if maps := c.do(t, fmt.Sprintf("cat /proc/%d/maps", pid)); !strings.Contains(maps, "secretmem") {
		t.Skip("SKIPPED, what is in the broker's memory: needs a kernel with memfd_secret, to tell copies from the pages it is kept in")
	}
	var found map[string]int
	play(t, c, "", "memory", somebodys{PID: pid, Values: map[string]string{"value": value}}, &found)
	if len(found) > 0 {
		t.Errorf("copies in the broker's memory: %v", found)
	}
	// A search that finds what is there: the path of its store is no secret.
	play(t, c, "", "memory", somebodys{PID: pid, Values: map[string]string{"path": varsDir}}, &found)
	if found["path"] == 0 {
		t.Error("the search finds nothing at all")
	}
}
