// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/secret"
)

func (a *app) auditCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "audit COMMAND",
		Short: "show who was given what, and verify the record of it",
		Long: `Show who was given what, and verify the record of it.

Before a value leaves, a record of it is durable in the audit log: root's, and that
of all units, is /var/log/vmcred/audit.log, an ordinary user's
$XDG_STATE_HOME/vmcred/audit.log, or what audit: in the host's file
(/etc/vmcred/vmcred.yaml) or $VMCRED_AUDIT says.`,
		Example: `  vmcred audit show --vm test-vm --since 24h
  vmcred audit verify --key /media/key/audit.key`,
		DisableFlagsInUseLine: true,
		Args:                  knownCommand,
		ValidArgsFunction:     cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			c.SetOut(a.stderr)
			return errors.Join(c.Help(), &shownError{exitUsage})
		},
	}
	c.AddCommand(a.auditShowCommand(), a.auditVerifyCommand(), a.auditKeyCommand())
	return c
}

// reader opens a log to read. Whose it is does not matter for that: verifying shows
// whether it is what was written.
func (a *app) reader(p string) (*audit.Reader, *os.File, string, error) {
	if p == "" {
		var err error
		if p, err = a.auditPath(); err != nil {
			return nil, nil, "", err
		}
	}
	p, err := filepath.Abs(p)
	if err != nil {
		return nil, nil, "", err
	}
	dir, err := os.Open(filepath.Dir(p))
	if err != nil {
		return nil, nil, p, a.noLog(p, err)
	}
	return audit.NewReader(dir, filepath.Base(p)), dir, p, nil
}

// noLog says that there is no log, with its own exit status, or what else is wrong.
func (a *app) noLog(p string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return &audit.Error{Log: console.QuotePath(p), What: "cannot be read", Err: err}
	}
	a.showError(&hinted{
		message: "there is no audit log " + console.QuotePath(p),
		hint:    "it is made when a VM with credentials is first started; another one: --log PATH",
	})
	return &shownError{exitRefused}
}

const logUsage = "read the log `PATH` rather than the one of who asks"

func (a *app) auditVerifyCommand() *cobra.Command {
	var (
		log, key string
		heads    []string
		first    uint64
		asJSON   bool
	)
	c := &cobra.Command{
		Use:   "verify",
		Short: "verify that the audit log is what was written",
		Long: `Verify that the audit log is what was written, and name each record that is not.

Every record names the hash of the one before, and the end of the log is compared
with the key's file beside it. --head, from the journal (VMCRED_AUDIT_HEAD) or
any other copy, shows an end that was cut and an older copy. --key, kept elsewhere
since 'vmcred audit key', shows what who took the host over later has rewritten.

Exit status: 0 the log is whole; 1 it is not; 78 there is no log.`,
		Example: `  vmcred audit verify
  vmcred audit verify --key /media/key/audit.key
  vmcred audit verify --log /mnt/copy/audit.log`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			check := audit.Check{First: first}
			for _, s := range heads {
				h, err := audit.ParseHead(s)
				if err != nil {
					return &usageError{command: c, err: fmt.Errorf("--head: %w", err)}
				}
				check.Heads = append(check.Heads, audit.Known{Head: h, From: "--head"})
			}
			return a.auditVerify(c, log, key, check, asJSON)
		},
	}
	c.Flags().StringVar(&log, "log", "", logUsage)
	c.Flags().StringVar(&key, "key", "", "the `FILE` of a key that was kept elsewhere")
	c.Flags().StringArrayVar(&heads, "head", nil, "the end of the log at some time, `SEQ:HASH`; may be repeated")
	c.Flags().Uint64Var(&first, "first", 1, "the `RECORD` the log may begin with: full files before it were taken away on purpose")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) auditVerify(c *cobra.Command, log, key string, check audit.Check, asJSON bool) error {
	if key != "" {
		k, err := readAuditKey(key)
		if err != nil {
			a.showError(fmt.Errorf("--key %s: %w", console.QuotePath(key), err))
			return &shownError{exitRefused}
		}
		defer k.Close()
		check.Key = k
	}
	r, dir, p, err := a.reader(log)
	if err != nil {
		return err
	}
	defer dir.Close()
	position, err := r.Position() // before the log: that can only be further on
	beside := err == nil
	switch {
	case beside && position.Seq > 0:
		check.Heads = append(check.Heads, audit.Known{Head: position, From: "its key's file"})
	case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission):
		return &audit.Error{Log: console.QuotePath(p), What: "its key's file cannot be read", Err: err}
	}
	report, err := r.Verify(c.Context(), check)
	if err != nil && beside && position.Seq > 0 && errors.Is(err, fs.ErrNotExist) {
		a.showError(&hinted{message: fmt.Sprintf("audit log %s is gone, and its key's file knows record %d", console.QuotePath(p), position.Seq)})
		return &shownError{exitFailed}
	}
	if err != nil {
		return a.noLog(p, err)
	}
	if asJSON {
		if err := a.printJSON(report); err != nil {
			return err
		}
	} else {
		a.showReport(p, report, check, beside)
	}
	if len(report.Faults) > 0 {
		return &shownError{exitFailed}
	}
	return nil
}

func (a *app) showReport(p string, r *audit.Report, check audit.Check, beside bool) {
	st := styleOf(a.stderr, a.getenv)
	for _, f := range r.Faults {
		fmt.Fprintf(a.stderr, "%s%s\n", st.red("error: "), console.OneLine(f.String()))
	}
	if len(r.Faults) > 0 {
		n := count(len(r.Faults), "fault")
		if r.More {
			n = "more than " + n
		}
		fmt.Fprintf(a.stderr, "vmcred: the audit log %s is not whole: %s\n", console.QuotePath(p), n)
		return
	}
	fmt.Fprintf(a.out, "%s: whole, %s in %s", console.QuotePath(p), count(int(r.Records), "record"), count(r.Files, "file"))
	if r.Records > 0 {
		fmt.Fprintf(a.out, ", from %s to %s\n  its end: %s", localTime(r.From), localTime(r.To), r.Last)
	}
	fmt.Fprintln(a.out)
	say := func(format string, args ...any) { fmt.Fprintf(a.out, "  "+format+"\n", args...) }
	if !beside {
		say("its end is not compared with the key's file, which cannot be read from here")
	}
	switch {
	case check.Key == nil:
		say("by its chain alone: who can write all of it could have made it anew; --key and --head show that")
	case r.Keyed == 0:
		say("the key is newer than all of its records: it shows that they were not cut")
	default:
		say("the key verifies records %d to %d, and by their chain those before", r.FirstKeyed, r.Last.Seq)
	}
	if r.Unwritten {
		say("it ends in a part of a write: one that goes on, or that a crash has cut; the next record says so")
	}
}

func localTime(t time.Time) string { return t.Local().Format(time.DateTime) }

// readAuditKey reads a key into locked pages.
func readAuditKey(file string) (*audit.Key, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, errors.Unwrap(err) // the path is said
	}
	defer f.Close()
	v, err := secret.Read(f, audit.MaxKeyFile)
	if err != nil {
		return nil, err
	}
	defer v.Wipe()
	return audit.ParseKey(v)
}

func (a *app) auditKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "print the audit log's key of now, to be kept elsewhere",
		Long: `Print the audit log's key of now, to be kept elsewhere: on another machine, or on
a medium that is taken out.

The key changes with every start of a VM, and the old one is erased. Who keeps
this one can verify all that is written from now on, and that what was written
before is what it was when the next record came. Who has it can also make such
records: so it must not stay on this host. Take the first one before the first VM
is started: it makes the log, and verifies all of it.`,
		Example: `  vmcred audit key > /media/key/audit.key
  vmcred audit key | ssh admin@log.example.org 'cat > vmcred-audit.key'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return a.auditKey(c) },
	}
}

func (a *app) auditKey(c *cobra.Command) error {
	if isTerminal(a.stdout) {
		return &usageError{command: c, err: errors.New("a key is not shown on a terminal"), hint: "vmcred audit key > FILE, on a medium that does not stay in this host"}
	}
	p, err := a.auditPath()
	if err != nil {
		return err
	}
	log, dir, err := a.auditLog(p, nil)
	if err != nil {
		return err
	}
	defer dir.Close()
	k, err := log.Key(c.Context())
	if err != nil {
		return err
	}
	defer k.Close()
	text, err := k.Text()
	if err != nil {
		return err
	}
	defer func() {
		for _, piece := range text {
			piece.Secret.Wipe()
		}
	}()
	n, err := text.WriteTo(a.stdout)
	if err == nil && n < int64(text.Len()) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("writing to standard output: %w", err)
	}
	return nil
}
