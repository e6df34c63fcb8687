// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/escape"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/vm"
)

func (a *app) runCommand() *cobra.Command {
	var (
		sources sourceFlags
		format  string
	)
	c := &cobra.Command{
		Use:   "run VM",
		Short: "start a VM, hand it its secrets and stay until it ends",
		Long: `Start a VM, hand it its secrets and stay until it ends.

VM is a name (its file is /etc/vmcred/vms/NAME.yaml, an ordinary user's
$XDG_CONFIG_HOME/vmcred/vms/NAME.yaml) or, with a "/", the path of a file.

Ctrl-C or SIGTERM presses the power button and waits (stop-timeout:); a second
one does not wait for the guest. Exit status: 0 the guest powered off or was
stopped; 1 it failed and a restart may help; 2 usage; 78 refused, a restart
will not help; 133 the guest rebooted (in a unit; elsewhere it starts anew).`,
		Example: `  vmcred run test-vm
  vmcred run ./test-vm.yaml --credentials /run/my-secrets
  vmcred run test-vm --load-credential host-api-key:/run/secrets/api-key`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE: func(c *cobra.Command, args []string) error {
			return a.run(c, args[0], &sources, format)
		},
	}
	sources.add(c)
	c.Flags().StringVar(&format, "log-format", "auto", "`FORMAT` of our own messages: text, json, or auto (the journal in a unit)")
	_ = c.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"auto", "json", "text"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) run(c *cobra.Command, arg string, sources *sourceFlags, format string) error {
	log, err := a.newLog(format, vmName(arg))
	if err != nil {
		return &usageError{command: c, err: err}
	}
	err = a.runVM(c, arg, sources, log, a.vmmLog(format, log))
	a.lastWords(err, log)
	if format == "json" {
		return logError(log, err)
	}
	return err
}

// lastWords leave in the unit's status why it failed: while systemd waits to start it
// again, systemctl status shows nothing else.
func (a *app) lastWords(err error, log *slog.Logger) {
	if err == nil || errors.Is(err, errRebooted) || !a.inUnit() {
		return
	}
	words, hint := "failed: "+err.Error(), hintOf(err)
	if problems := refusedFor(err); len(problems) > 0 {
		words, hint = "refused: "+problems[0].Error(), problems[0].Hint
		if n := len(problems) - 1; n > 0 {
			hint += " (and " + count(n, "problem") + " more)"
		}
	}
	if hint != "" {
		words += "; hint: " + hint
	}
	notifier(log)("STATUS=" + console.OneLine(words))
}

// vmName is the name in the log, also for a file that cannot be read.
func vmName(arg string) string {
	base := filepath.Base(arg)
	return strings.TrimSuffix(base, filepath.Ext(base))
}

func (a *app) runVM(c *cobra.Command, arg string, sources *sourceFlags, log *slog.Logger, vmmLog io.Writer) error {
	spec, warnings, err := a.load(arg)
	if err != nil {
		return err
	}
	o, err := a.options(c, spec, sources)
	if err != nil {
		return err
	}
	if o.Identity, err = a.identity(spec); err != nil {
		return err
	}
	o.Log, o.VMMLog = log, vmmLog
	o.Setup = a.setUpNet(spec, o.Identity)
	return a.follow(c, o, warnings)
}

// follow runs the VM to its end.
func (a *app) follow(c *cobra.Command, o runner.Options, warnings vm.Problems) error {
	log := o.Log
	if b, ok := o.Recorder.(*hostBroker); ok {
		b.log = log
	} else if len(o.Spec.Credentials) > 0 {
		path, err := a.auditPath()
		if err != nil {
			return err
		}
		o.Recorder = &recorder{a: a, path: path, log: log}
	}
	for _, w := range warnings {
		logProblem(log, w)
	}
	// A reader of our output that goes away must not take the VM with it: writing
	// fails then, instead of killing us.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	out, done := a.console(log)
	defer done()
	o.Console = out
	if o.Notify == nil {
		o.Notify = notifier(log)
	}
	outcome, err := runner.Run(c.Context(), o)
	if err == nil && outcome == runner.Rebooted {
		log.Info("the guest rebooted: systemd starts the unit anew, with the values of then")
		return errRebooted
	}
	return err
}

// notifier tells the unit's systemd, where there is one.
func notifier(log *slog.Logger) func(string) {
	return func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("systemd was not told", "state", state, "error", err)
		}
	}
}

// console is where the guest's console goes: a guest may not do to the host's
// terminal what it likes. The function is for the end.
func (a *app) console(log *slog.Logger) (io.Writer, func()) {
	to := &screen{to: a.stdout, log: log}
	if !isTerminal(a.stdout) {
		return to, func() {}
	}
	f := escape.NewFilter(to, escape.Show)
	return f, func() { _ = f.Close() } // a terminal that went away needs no reset
}

// screen is the console's way out. Nothing is shown any more after the first error, and
// the VM goes on: so somebody has to say it.
type screen struct {
	to  io.Writer
	log *slog.Logger
}

func (s *screen) Write(b []byte) (int, error) {
	n, err := s.to.Write(b)
	if err != nil && s.log != nil {
		// A reader that went away, as head(1) does, wants no more.
		if !errors.Is(err, syscall.EPIPE) {
			s.log.Warn("the guest's console is lost from here on: "+err.Error(), "hint", "the VM goes on without it; console: off or a file elsewhere")
		}
		s.log = nil
	}
	return n, err
}
