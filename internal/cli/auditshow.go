// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/hypervisor/console"
)

// showFlags are those of audit show.
type showFlags struct {
	log, vm, credential, since string
	follow, asJSON             bool
	from                       time.Time
}

func (a *app) auditShowCommand() *cobra.Command {
	var f showFlags
	c := &cobra.Command{
		Use:   "show",
		Short: "show the records of the audit log: names and lengths, no values",
		Long: `Show the records of the audit log, oldest first: when, which VM, what was done with
which credential, the first digits of the value's keyed digest (the same value of
the same credential has the same), and who asked. No value is in it.

Times are local. --json prints each record as it is, one a line, without its MAC
and hash. A line that is no record is warned of: see 'vmcred audit verify'.`,
		Example: `  vmcred audit show --vm test-vm
  vmcred audit show --credential host-api-key --since 2026-01-31
  vmcred audit show --follow --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return a.auditShow(c, &f) },
	}
	c.Flags().StringVar(&f.log, "log", "", logUsage)
	c.Flags().StringVar(&f.vm, "vm", "", "show the records of one `VM`")
	c.Flags().StringVar(&f.credential, "credential", "", "show the records of one credential, by its `NAME` on the host or in the guest")
	c.Flags().StringVar(&f.since, "since", "", "show the records since `TIME`: 2026-01-31, '2026-01-31 15:04', 15:04 (today), 90m, 24h or 7d ago")
	c.Flags().BoolVar(&f.follow, "follow", false, "go on with what is added, until Ctrl-C")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print JSON, one record a line")
	_ = c.RegisterFlagCompletionFunc("vm", a.completeVM)
	return c
}

// tick is how often --follow looks for more.
const tick = 250 * time.Millisecond

func (a *app) auditShow(c *cobra.Command, f *showFlags) error {
	if f.since != "" {
		var err error
		if f.from, err = parseSince(f.since, time.Now()); err != nil {
			return &usageError{command: c, err: err}
		}
	}
	r, dir, p, err := a.reader(f.log)
	if err != nil {
		return err
	}
	defer dir.Close()
	lines := r.Lines()
	if f.follow {
		t := time.NewTicker(tick)
		defer t.Stop()
		lines = r.Follow(c.Context(), t.C)
	}
	return a.showLines(p, lines, f)
}

func (a *app) showLines(p string, lines iter.Seq2[audit.Line, error], f *showFlags) error {
	st := styleOf(a.stderr, a.getenv)
	for l, err := range lines {
		switch {
		case err != nil:
			return a.noLog(p, err)
		case l.Part:
			continue
		case l.Err != nil:
			fmt.Fprintf(a.stderr, "%s%s:%d: %v\n    %ssee 'vmcred audit verify'\n", st.yellow("warning: "), console.OneLine(l.File), l.Number, l.Err, st.bold("hint: "))
			if errors.Is(l.Err, audit.ErrNoRecord) {
				continue
			}
		}
		if !f.wants(&l.Record) {
			continue
		}
		if err := a.showRecord(&l.Record, f.asJSON); err != nil {
			return err
		}
	}
	return nil
}

func (f *showFlags) wants(r *audit.Record) bool {
	var names audit.Credential
	if r.Credential != nil {
		names = *r.Credential
	}
	return (f.vm == "" || r.VM == f.vm) && (f.credential == "" || f.credential == names.Host || f.credential == names.Guest) && !r.Time.Before(f.from)
}

func (a *app) showRecord(r *audit.Record, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(a.out).Encode(r)
	}
	fmt.Fprintf(a.out, "%s  %-12s  %-8s  %s\n", localTime(r.Time), console.OneLine(orDash(r.VM)), console.OneLine(string(r.Op)), console.OneLine(recordWords(r)))
	return a.out.err
}

// recordWords are what a record says beside when, which VM and what.
func recordWords(r *audit.Record) string {
	var w []string
	if c := r.Credential; c != nil {
		names := c.Host
		if c.Guest != "" {
			names += " → " + c.Guest
		}
		w = append(w, names)
		if r.Op == audit.Release {
			size := fmt.Sprintf("%d bytes", c.Bytes)
			if c.Channel != "" { // of the broker's, the hypervisor gets it later
				size += " by " + c.Channel
			}
			w = append(w, size)
		}
	}
	if r.Version != "" {
		w = append(w, "version "+r.Version)
	}
	if len(r.Digest) >= 8 {
		w = append(w, r.Digest[:8])
	}
	if r.Reason != "" {
		w = append(w, r.Reason)
	}
	if r.Op == audit.Begin {
		w = append(w, "log "+r.Log)
	}
	if r.Lost > 0 {
		w = append(w, count(int(r.Lost), "byte")+" cut off")
	}
	if r.By != nil {
		by := fmt.Sprintf("user %d, process %d", r.By.UID, r.By.PID)
		if r.By.Unit != "" {
			by += ", " + r.By.Unit
		}
		w = append(w, by)
	}
	return strings.Join(w, "  ")
}

var errSince = errors.New("--since takes 2026-01-31, '2026-01-31 15:04', 15:04 (today), or how long ago: 90m, 24h, 7d")

// parseSince reads a time, or how long ago it was. What names no zone is local.
func parseSince(s string, now time.Time) (time.Time, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly, "2006-01-02 15:04", time.DateTime} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04", "15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil {
			return time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.Local), nil
		}
	}
	return time.Time{}, errSince
}
