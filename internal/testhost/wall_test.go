// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/leak"
)

func (h *host) cgroup(t *testing.T) string {
	t.Helper()
	return "/sys/fs/cgroup" + h.show(t, "ControlGroup")
}

// status reads fields of /proc/PID/status.
func (h *host) status(t *testing.T, pid int) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(h.do(t, "cat /proc/"+strconv.Itoa(pid)+"/status")) {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

func testIdentity(t *testing.T, h *host) {
	uid := strings.TrimSpace(h.do(t, "id -u "+vmUser))
	gid := strings.TrimSpace(h.do(t, "id -g "+vmUser))
	if uid == "0" || gid == "0" {
		t.Fatalf("the VM's user is %s:%s", uid, gid)
	}
	four := func(id string) string { return strings.Join([]string{id, id, id, id}, " ") }
	for who, pid := range h.processes(t) {
		status := h.status(t, pid)
		for key, want := range map[string]string{
			"Uid": four(uid), "Gid": four(gid), "CapEff": "0000000000000000", "CapPrm": "0000000000000000",
			"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
		} {
			if got := status[key]; got != want {
				t.Errorf("%s: %s is %q, want %q", who, key, got, want)
			}
		}
		limits := h.do(t, "grep core /proc/"+strconv.Itoa(pid)+"/limits")
		if f := strings.Fields(limits); len(f) < 6 || f[4] != "1" || f[5] != "1" {
			t.Errorf("%s: %s, want 1 and 1", who, limits)
		}
	}
}

// attempt makes every attempt as a user, and returns how each ended.
func (h *host) attempt(t *testing.T, user string) map[string]string {
	t.Helper()
	to := targets{
		Unit: unitName, Cgroup: h.cgroup(t), RunDir: runDir, PIDs: h.processes(t),
		Files: []string{runDir + "/lock"}, Sockets: []string{runDir + "/console.sock"},
		Write: []string{
			vmFile, "/etc/systemd/system/" + unitName + ".d/sources.conf", generated + "/" + unitName + ".d/10-vmcred.conf", "/usr/local/lib/systemd/system/vmcred@.service", "/usr/local/bin/vmcred.x",
		},
	}
	h.do(t, "touch /usr/local/bin/vmcred.x") // the program itself is busy, also for root
	for name := range credentials() {
		to.Files = append(to.Files, "/run/credentials/"+unitName+"/host-"+name, sources+"/"+name)
	}
	var ended map[string]string
	play(t, h.container, user, "attempts", to, &ended)
	return ended
}

// testOther has another VM's user try everything. That root gets through with
// the very same attempts shows that they are real ones.
func testOther(t *testing.T, h *host) {
	ended := h.attempt(t, other)
	for _, name := range slices.Sorted(maps.Keys(ended)) {
		t.Run(name, func(t *testing.T) {
			if why := ended[name]; why == gotThrough {
				t.Error("got through")
			} else if !refusal(why) {
				t.Errorf("not refused, but failed: %s", why)
			}
		})
	}
	for name, why := range h.attempt(t, "") {
		// To set limits is a capability that not every root has. See testUndumpable.
		if why != gotThrough && !strings.HasSuffix(name, ": limits") {
			t.Errorf("root, %s: %s: this attempt shows nothing", name, why)
		}
	}
}

// refusal tells a closed door from an attempt that was badly made.
func refusal(why string) bool {
	return strings.HasSuffix(why, "permission denied") || strings.HasSuffix(why, "operation not permitted") ||
		strings.HasPrefix(why, "journalctl shows nothing")
}

// testUndumpable has the VM's own user, outside of the VMM's domain, try the
// runner. That he gets through to QEMU with the same shows that it is the runner.
func testUndumpable(t *testing.T, h *host) {
	ended := h.attempt(t, vmUser)
	for name, why := range ended {
		who, what, _ := strings.Cut(name, ": ")
		switch {
		case what == "kill" || what == "signal by pidfd" || what == "limits":
			// One user's processes may: the domain keeps QEMU from it.
			if why != gotThrough {
				t.Errorf("%s: %s: this attempt shows nothing", name, why)
			}
		case who == "runner" && why == gotThrough:
			t.Errorf("%s: got through", name)
		case who == "QEMU" && slices.Contains([]string{"environ", "ptrace", "process_vm_readv", "list fd"}, what) && why != gotThrough:
			t.Errorf("%s: %s: this attempt shows nothing", name, why)
		}
	}
}

// testDomain makes QEMU itself send a signal to the runner. The VM's user may,
// so it is the domain that refuses.
func testDomain(t *testing.T, h *host) {
	pids := h.processes(t)
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || abi < 6 {
		t.Skipf("SKIPPED, the domain was not tried out: needs a kernel whose Landlock has scopes (6.12), this one has version %d (%v)", abi, errno)
	}
	started := with(h.records(t, h.starts[2]), func(r record) bool {
		return strings.Contains(r["VMCRED_CONFINEMENT"], "landlock with scopes")
	})
	if len(started) != 1 {
		t.Errorf("%d records of the confinement, want one", len(started))
	}
	var ended map[string]string
	play(t, h.container, "", "inject", injection{Into: pids["QEMU"], To: pids}, &ended)
	if ended["QEMU"] != gotThrough {
		t.Errorf("QEMU to itself: %s: this attempt shows nothing", ended["QEMU"])
	}
	if ended["runner"] != "operation not permitted" {
		t.Errorf("QEMU to the runner: %q, want it refused", ended["runner"])
	}
	if outside := h.attempt(t, vmUser)["runner: kill"]; outside != gotThrough {
		t.Errorf("the VM's user to the runner: %s: this attempt shows nothing", outside)
	}
}

func testSearch(t *testing.T, h *host) {
	hay := haystack{Since: h.booted, Values: maps.Clone(h.every), Meant: map[string]string{
		"the sources": sources, "the unit's credentials": "/run/credentials/" + unitName,
	}}
	if len(hay.Values) < 7 {
		t.Fatalf("only %d values in three starts", len(hay.Values))
	}
	var report leak.Report
	play(t, h.container, "", "search", hay, &report)
	found := map[leak.Kind]bool{}
	for _, f := range report.Findings {
		if f.Needle == planted {
			found[f.Place.Kind] = true
		} else {
			t.Errorf("found %s", f)
		}
	}
	for _, kind := range []leak.Kind{leak.Argv, leak.Environ, leak.File, leak.Journal} {
		if !found[kind] {
			t.Errorf("what was planted in %s was not found: the search shows nothing", kind)
		}
	}
	// What is meant to hold them does: or these are not the values.
	if len(report.Meant) < 2*len(credentials()) {
		t.Errorf("found in %d places meant for it, want %d: %v", len(report.Meant), 2*len(credentials()), report.Meant)
	}
	for _, s := range report.NotSearched {
		if s.What == "argv" || s.What == "environ" || s.What == "journal" || s.What == "descriptor" {
			t.Errorf("not searched: %s: %s, %s", s.What, s.Why, s.Example)
		}
	}
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(report.Searched); err == nil {
		t.Logf("searched %d values: %s", len(hay.Values), &text)
	}
}
