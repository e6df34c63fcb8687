// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"bufio"
	"encoding/json"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// record is one of the journal's, by field.
type record map[string]string

func (r record) message() string { return r["MESSAGE"] }

// invocation is which start of the unit it belongs to.
func (r record) invocation() string { return r["_SYSTEMD_INVOCATION_ID"] }

// UnmarshalJSON takes journalctl's forms of a field: a text, bytes as numbers,
// null if it is long, or a list of these.
func (r *record) UnmarshalJSON(b []byte) error {
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	*r = record{}
	for key, v := range fields {
		switch v := v.(type) {
		case string:
			(*r)[key] = v
		case []any:
			var text strings.Builder
			for _, n := range v {
				if n, ok := n.(float64); ok {
					text.WriteByte(byte(n))
				}
			}
			(*r)[key] = text.String()
		}
	}
	return nil
}

// journal follows the container's journal of one unit.
type journal struct {
	mu      sync.Mutex // guards the fields below
	records []record
	more    chan struct{} // closed with the next record
	ended   bool
}

// followJournal reads until the container ends.
func followJournal(t *testing.T, c *container, unit string) *journal {
	t.Helper()
	j := &journal{more: make(chan struct{})}
	// nsenter has a child, which would outlive it.
	cmd := c.command("setpriv", "--pdeathsig", "KILL", "journalctl", "--follow", "--lines=all", "--output=json", "--unit="+unit)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); j.read(cmd, bufio.NewScanner(out)) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	return j
}

func (j *journal) read(cmd *exec.Cmd, lines *bufio.Scanner) {
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r record
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			continue
		}
		j.add(r, false)
	}
	_ = cmd.Wait()
	j.add(nil, true)
}

func (j *journal) add(r record, ended bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if ended {
		j.ended = true
	} else {
		j.records = append(j.records, r)
	}
	close(j.more)
	j.more = make(chan struct{})
}

// wait returns the first record, old or new, for which is says yes.
func (j *journal) wait(t *testing.T, what string, is func(record) bool) record {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for seen := 0; ; {
		j.mu.Lock()
		records, more, ended := j.records, j.more, j.ended
		j.mu.Unlock()
		for ; seen < len(records); seen++ {
			if is(records[seen]) {
				return records[seen]
			}
		}
		if ended {
			t.Fatalf("the journal ended without %s", what)
		}
		select {
		case <-more:
		case <-timeout.C:
			t.Fatalf("the journal is without %s; its last lines:\n%s", what, tail(records))
		}
	}
}

// records returns what the journal has of one start so far: what the unit said
// itself, and what systemd says about it.
func (h *host) records(t *testing.T, invocation string) []record {
	t.Helper()
	return h.matching(t, "_SYSTEMD_INVOCATION_ID="+invocation+" + INVOCATION_ID="+invocation)
}

// matching returns the records that match (journalctl(1)), in order.
func (c *container) matching(t *testing.T, match string) []record {
	t.Helper()
	var found []record
	lines := c.do(t, "journalctl --sync; journalctl --no-pager --output=json "+match)
	for line := range strings.Lines(lines) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		found = append(found, r)
	}
	return found
}

// between is the time from the first record of one kind to the first of another.
func between(t *testing.T, records []record, from, to func(record) bool) time.Duration {
	t.Helper()
	var at [2]int64
	for n, is := range []func(record) bool{from, to} {
		i := slices.IndexFunc(records, is)
		if i < 0 {
			t.Fatalf("the journal has not both records:\n%s", tail(records))
		}
		at[n], _ = strconv.ParseInt(records[i]["__MONOTONIC_TIMESTAMP"], 10, 64)
	}
	return time.Duration(at[1]-at[0]) * time.Microsecond
}

// with keeps the records for which is says yes.
func with(records []record, is func(record) bool) []record {
	return slices.DeleteFunc(records, func(r record) bool { return !is(r) })
}

func tail(records []record) string {
	var b strings.Builder
	for _, r := range records[max(0, len(records)-30):] {
		b.WriteString("  " + r.message() + "\n")
	}
	return b.String()
}
