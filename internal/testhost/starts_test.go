// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/broker/transfer"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/secret"
)

// manyStarts is how many units start at once; VMCRED_STARTS sets it.
const manyStarts = 60

// secretsEach is how many secrets each of them has.
const secretsEach = 5

func startsWanted(t *testing.T) int {
	t.Helper()
	text := os.Getenv("VMCRED_STARTS")
	if text == "" {
		return manyStarts
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("VMCRED_STARTS=%s is no number of starts", text)
	}
	return n
}

// crowd is a host with many units whose values come from the broker, and as many whose
// values are files.
type crowd struct {
	*container
	n int
}

// A checker writes what it was given into a file of its own.
const crowdUnit = `[Unit]
StartLimitIntervalSec=0
[Service]
Type=oneshot
TimeoutStartSec=10min
Environment=VM=%%i
ExecStart=` + self + ` part receive
%s`

// partly ends the name of what a checker was given that is not all.
const partly = ".partly"

// receive is what a checker does: as vmcred run, it compares what arrived with the list that
// came along, and fails if that is not all. It is a part of this program.
func receive([]byte) (any, error) {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	a := secret.NewArena()
	read := func(name string) (*secret.Value, error) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return a.Read(f, 1<<20)
	}
	var list *transfer.List
	text, err := read(credential.TransferList)
	if err == nil {
		list, err = transfer.Parse(a, text)
	} else if errors.Is(err, fs.ErrNotExist) {
		list, err = &transfer.List{}, nil // values that are files have none
	}
	var failed []error
	if err != nil {
		list, failed = &transfer.List{}, []error{err}
	}
	var out strings.Builder
	for s := range secretsEach {
		name := fmt.Sprintf("h-%d", s)
		v, err := read(name)
		if err != nil {
			return nil, err
		}
		_ = v.Use(func(b []byte) error { fmt.Fprintf(&out, "%s\n%s\n", name, b); return nil })
		if err := list.Verify(name, v); err != nil {
			failed = append(failed, err)
		}
	}
	path := filepath.Join(checkedDir, os.Getenv("VM"))
	if len(failed) > 0 { // what did arrive has to be on record all the same
		path += partly
	}
	if err := os.WriteFile(path+".new", []byte(out.String()), 0o600); err != nil {
		return nil, err
	}
	return nil, errors.Join(append(failed, os.Rename(path+".new", path))...)
}

func crowdValue(i, s, turn int) string {
	return fmt.Sprintf("value %d of vm-%d in turn %d", s, i, turn)
}

func newCrowd(t *testing.T, system string, n int) *crowd {
	t.Helper()
	c := &crowd{brokerHost(t, system), n}
	var broker, files strings.Builder
	for s := range secretsEach {
		fmt.Fprintf(&broker, "LoadCredential=h-%d:/run/vmcred/broker.sock\n", s)
		fmt.Fprintf(&files, "LoadCredential=h-%d:/run/secrets/%%i/h-%d\n", s, s)
	}
	broker.WriteString("LoadCredential=vmcred.transfer-list:/run/vmcred/broker.sock\n")
	c.write(t, "/etc/systemd/system/check@.service", fmt.Sprintf(crowdUnit, broker.String()))
	c.write(t, "/etc/systemd/system/plain@.service", fmt.Sprintf(crowdUnit, files.String()))
	for i := range n {
		var text strings.Builder
		for s := range secretsEach {
			fmt.Fprintf(&text, "  h-%d: {var: gen-%d/h-%d}\n", s, i, s)
			c.write(t, fmt.Sprintf("/run/secrets/vm-%d/h-%d", i, s), crowdValue(i, s, 0))
		}
		c.write(t, fmt.Sprintf("/etc/vmcred/vms/vm-%d.yaml", i), foreignFile(fmt.Sprintf("check@vm-%d.service", i), text.String()))
	}
	// What a generator of n VMs writes is not what is measured.
	c.do(t, "mkdir -p /etc/systemd/system-generators; ln -s /dev/null /etc/systemd/system-generators/vmcred-generator; systemctl daemon-reload; systemctl start "+brokerUnit)
	c.turn(t, 0)
	return c
}

// turn writes all values anew.
func (c *crowd) turn(t *testing.T, turn int) {
	t.Helper()
	for i := range c.n {
		dir := c.path(fmt.Sprintf("%s/gen-%d", varsDir, i))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for s := range secretsEach {
			path := fmt.Sprintf("%s/h-%d", dir, s)
			if err := os.WriteFile(path+".new", []byte(crowdValue(i, s, turn)), 0o400); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// start starts all units of a template at once, and returns when each has ended, with how
// long that took. Whatever fails is only not there afterwards.
func (c *crowd) start(t *testing.T, template string, meanwhile string) time.Duration {
	t.Helper()
	c.do(t, "rm -rf "+checkedDir+"/*; systemctl reset-failed")
	units := make([]string, c.n)
	for i := range units {
		units[i] = fmt.Sprintf("%s@vm-%d.service", template, i)
	}
	c.write(t, "/run/units", strings.Join(units, "\n"))
	begin := time.Now()
	c.do(t, meanwhile+" xargs -a /run/units systemctl start || :")
	return time.Since(begin)
}

// receipts are what each unit was given, by VM: those that had all; partly: the others.
func (c *crowd) receipts(t *testing.T, suffix string) map[int][]string {
	t.Helper()
	out := map[int][]string{}
	all, err := filepath.Glob(c.path(checkedDir) + "/vm-*" + suffix)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		i, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "vm-"), suffix))
		if err != nil {
			continue // half-written, or of the other kind
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}
	return out
}

// verify: whoever ran has all of its own.
func (c *crowd) verify(t *testing.T, got map[int][]string, turn int) {
	t.Helper()
	for i, lines := range got {
		var want []string
		for s := range secretsEach {
			want = append(want, fmt.Sprintf("h-%d", s), crowdValue(i, s, turn))
		}
		if !slices.Equal(lines, want) {
			t.Errorf("vm-%d was given %q", i, lines)
		}
	}
}

// verifyPart: who had not all had nothing but the beginnings of its own, and each of which
// something arrived is on record.
func (c *crowd) verifyPart(t *testing.T, before map[string]int, turn int) int {
	t.Helper()
	after, arrived := c.released(t), 0
	for i, lines := range c.receipts(t, partly) {
		if len(lines) != 2*secretsEach {
			t.Errorf("vm-%d was given %q", i, lines)
			continue
		}
		for s := range secretsEach {
			got, want := lines[2*s+1], crowdValue(i, s, turn)
			key := fmt.Sprintf("vm-%d h-%d", i, s)
			switch {
			case !strings.HasPrefix(want, got):
				t.Errorf("%s was given as %q", key, got)
			case got != "" && after[key] <= before[key]:
				t.Errorf("%s left and is not on record", key)
			case got != "":
				arrived++
			}
		}
	}
	return arrived
}

// released counts the records of values, by VM and name, since the last call.
func (c *crowd) released(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	lines := c.do(t, `cat `+auditLog+` 2>/dev/null | grep -o '"op":"release".*"vm":"vm-[0-9]*","credential":{"host":"h-[0-9]"' | sed 's/.*"vm":"\(vm-[0-9]*\)".*"host":"\(h-[0-9]\)"/\1 \2/' | sort | uniq -c || :`)
	for line := range strings.Lines(lines) {
		if f := strings.Fields(line); len(f) == 3 {
			out[f[1]+" "+f[2]], _ = strconv.Atoi(f[0])
		}
	}
	return out
}

// TestStarts starts many units at once: all right, none mixed, each value on record; and again
// with a broker that is killed all the time. How long that takes is only said.
func TestStarts(t *testing.T) { tryStarts(t, "") }

// tryStarts is TestStarts with the systemd below a root directory; empty: this machine's.
func tryStarts(t *testing.T, system string) {
	t.Helper()
	c := newCrowd(t, system, startsWanted(t))
	var ours, files []time.Duration
	for range 3 {
		files = append(files, c.start(t, "plain", ""))
		if got := c.receipts(t, ""); len(got) != c.n {
			t.Fatalf("%d of %d units with files ran", len(got), c.n)
		}
		before := c.released(t)
		ours = append(ours, c.start(t, "check", ""))
		got := c.receipts(t, "")
		if len(got) != c.n {
			t.Errorf("%d of %d units ran:\n%s", len(got), c.n, c.do(t, "systemctl --failed --no-pager | sed -n 1,10p; journalctl --no-pager --unit "+brokerUnit+" | grep -v 'on record' | tail"))
		}
		c.verify(t, got, 0)
		c.onRecord(t, before, got)
	}
	slices.Sort(ours)
	slices.Sort(files)
	peak := c.do(t, "cat /sys/fs/cgroup/system.slice/"+brokerUnit+"/memory.peak 2>/dev/null || grep VmHWM /proc/$(systemctl show --value --property=MainPID "+brokerUnit+")/status")
	t.Logf("%d starts at once with %d values each: by the broker %v, with files %v, %.2f×; the broker's peak: %s", c.n, secretsEach, ours[1], files[1],
		ours[1].Seconds()/files[1].Seconds(), strings.TrimSpace(peak))
	c.killed(t)
}

// onRecord: no value was given without a record of it.
func (c *crowd) onRecord(t *testing.T, before map[string]int, got map[int][]string) {
	t.Helper()
	after := c.released(t)
	for i := range got {
		for s := range secretsEach {
			if key := fmt.Sprintf("vm-%d h-%d", i, s); after[key] <= before[key] {
				t.Errorf("%s was given and is not on record", key)
			}
		}
	}
}

// killed: the broker is killed at random moments while they start, and the values change.
func (c *crowd) killed(t *testing.T) {
	c.turn(t, 1)
	before := c.released(t)
	// Not without end: each new broker has to read all the VMs' files first.
	killer := `rm -f /run/over; (for k in $(seq 20); do for i in $(seq $((RANDOM % (k * 3)))); do
		[ ! -e /run/over ] || exit 0; systemctl is-active -q ` + brokerUnit + ` || :
	done; [ ! -e /run/over ] || exit 0; systemctl kill --signal=KILL ` + brokerUnit + ` 2>/dev/null || :; done) & trap "touch /run/over; wait" EXIT;`
	c.start(t, "check", killer)
	got := c.receipts(t, "")
	c.verify(t, got, 1)
	c.onRecord(t, before, got)
	part := c.verifyPart(t, before, 1)
	kills := strings.TrimSpace(c.do(t, "journalctl --sync; journalctl --no-pager --unit "+brokerUnit+" | grep -c 'code=killed, status=9' || :"))
	t.Logf("with a broker that was killed %s times %d of %d units started, each with all its values; of the others' %d arrived, on record", kills, len(got), c.n, part)
	if len(got) < c.n/2 {
		t.Log(c.do(t, "journalctl --no-pager -o cat | grep -v 'on record' | sed 's/vm-[0-9]*/vm-N/g; s/[0-9][0-9]*/N/g' | sort | uniq -c | sort -rn | sed -n 1,20p; systemctl status --no-pager "+sockets+" | grep Active"))
	}
	if kills == "0" {
		t.Error("the broker was never killed")
	}
	c.do(t, "systemctl reset-failed; systemctl restart "+brokerUnit+"; vmcred audit verify")
	if len(got) == c.n {
		return
	}
	// Who did not start, starts now.
	c.start(t, "check", "")
	if got := c.receipts(t, ""); len(got) != c.n {
		t.Errorf("%d of %d units start with a broker that lives", len(got), c.n)
	}
}
