// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: it wires the rooms together, speaks to
// people and turns errors into exit codes.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/internal/generator"
	"github.com/vmcred/vmcred/vm"
)

// The exit codes, the same in every command.
const (
	exitOK       = 0
	exitFailed   = 1   // it failed, and a restart may help
	exitUsage    = 2   // the command line is wrong
	exitStopped  = 3   // status: the VM does not run, as systemctl status has it
	exitRefused  = 78  // refused, and a restart will not help (sysexits.h: EX_CONFIG)
	exitRebooted = 133 // the guest rebooted; a unit starts anew
)

// app is what every command shares.
type app struct {
	stdin          *os.File
	stdout, stderr *os.File
	out            *output // stdout for what a command says; the console has stdout itself
	getenv         func(string) string
	uid, pid       int
	argv0          string // what this program was started as
	force          chan struct{}
}

// Main runs the command line argv and returns the exit code. Under the name of the
// generator the program is that.
func Main(argv []string) int {
	if filepath.Base(argv[0]) == generator.Name {
		return generator.Main(argv)
	}
	a := &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, out: &output{f: os.Stdout}, getenv: os.Getenv,
		uid: os.Geteuid(), pid: os.Getpid(), argv0: argv[0], force: make(chan struct{}),
	}
	ctx, stop := a.signals()
	defer stop()
	root := a.tree()
	root.SetArgs(argv[1:])
	root.SetOut(a.out)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = a.out.err
	}
	return a.exitCode(err)
}

// oneSignal is how long after the first a second signal means the same: timeout(1)
// sends two at once, and nobody pressed Ctrl-C twice.
const oneSignal = 300 * time.Millisecond

// signals returns a context that the first SIGTERM, SIGINT or SIGHUP cancels.
// The second closes force. A SIGHUP that nohup(1) had ignored stays so.
func (a *app) signals() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(ch, syscall.SIGHUP)
	}
	go func() {
		<-ch
		cancel()
		for first := time.Now(); time.Since(first) < oneSignal; {
			<-ch
		}
		close(a.force)
	}()
	return ctx, cancel
}

// Tree is the command tree for documentation: it can be shown, not run.
func Tree() *cobra.Command {
	return (&app{stdout: os.Stdout, stderr: os.Stderr, out: &output{f: os.Stdout}, getenv: func(string) string { return "" }}).tree()
}

func (a *app) tree() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmcred COMMAND",
		Short: "start microVMs and hand each one its secrets as it starts",
		Long: `vmcred starts microVMs and hands each one its secrets at the moment it starts,
through memory alone, into the guest's own systemd credentials.

Exit status: 0 done; 1 it failed, and trying again may help; 2 the command line
is wrong; 3 the VM does not run (status); 78 refused, and trying again will not
help; 133 the guest rebooted (run).`,
		Example: `  vmcred check test-vm     is anything wrong?
  vmcred plan test-vm      what would it get, and how?
  vmcred run test-vm
  vmcred status test-vm`,
		Version:               version(),
		DisableFlagsInUseLine: true,

		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          knownCommand,
		RunE: func(c *cobra.Command, _ []string) error {
			c.SetOut(a.stderr)
			return errors.Join(c.Help(), &shownError{exitUsage})
		},
	}
	// "vmcred" alone does nothing: its usage does not show it.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	root.SetVersionTemplate("vmcred {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return &usageError{command: c, err: err} })
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run a VM:"},
		&cobra.Group{ID: "look", Title: "Look:"},
		&cobra.Group{ID: "setup", Title: "Set up:"},
	)
	for group, commands := range map[string][]*cobra.Command{
		"run":   {a.consoleCommand(), a.execCommand(), a.restartCommand(), a.runCommand(), a.stopCommand()},
		"look":  {a.auditCommand(), a.checkCommand(), a.listCommand(), a.planCommand(), a.statusCommand()},
		"setup": {a.brokerCommand(), a.initCommand(), a.netCommand(), a.unitsCommand(), a.completionCommand(), a.versionCommand(), helpCommand()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
			if c.Name() == "help" {
				root.SetHelpCommand(c)
			}
		}
	}
	root.CompletionOptions.DisableDefaultCmd = true
	return root
}

// helpCommand is cobra's, but a word that is no command is an error.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "show the help of a command",
		Long:  "Show the help of a command, the same as with --help.",
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return commandNames(c.Root()), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			found, rest, err := c.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return knownCommand(c.Root(), args)
			}
			found.InitDefaultHelpFlag()
			found.InitDefaultVersionFlag()
			return found.Help()
		},
	}
}

// knownCommand reports a word that is no command.
func knownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	e := &usageError{command: c, err: fmt.Errorf("there is no command %q", args[0])}
	if near := vm.Nearest(args[0], commandNames(c)); near != "" {
		e.hint = "did you mean '" + c.CommandPath() + " " + near + "'?"
	}
	return e
}

func commandNames(c *cobra.Command) []string {
	var names []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() || sub.Name() == "help" {
			names = append(names, sub.Name())
		}
	}
	return names
}

// usageError is a command line that is wrong.
type usageError struct {
	command *cobra.Command
	err     error
	hint    string // empty: the command's own help
}

func (e *usageError) Error() string { return e.err.Error() }

// Hint names what was meant, or the command's own help.
func (e *usageError) Hint() string {
	if e.hint != "" {
		return e.hint
	}
	return "see '" + e.command.CommandPath() + " --help'"
}

// noArgs wants none.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &usageError{command: c, err: fmt.Errorf("%q is one word too many", args[0])}
	}
	return nil
}

// oneVM wants exactly one VM, by name or path.
func oneVM(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return &usageError{command: c, err: errors.New("which VM? give its name, or the path of its file")}
	case len(args) > 1:
		return &usageError{command: c, err: errors.New("one VM at a time")}
	}
	return nil
}
