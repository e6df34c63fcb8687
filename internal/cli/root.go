// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: it wires the rooms together, speaks to
// people and turns errors into exit codes.
package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit codes, the same in every command.
const (
	exitOK       = 0
	exitFailed   = 1   // it failed, and a restart may help
	exitUsage    = 2   // the command line is wrong
	exitRefused  = 78  // refused, and a restart will not help (sysexits.h: EX_CONFIG)
	exitRebooted = 133 // the guest rebooted; a unit starts anew
)

// app is what every command shares.
type app struct {
	stdout, stderr *os.File
	getenv         func(string) string
	uid, pid       int
	force          chan struct{}
}

// Main runs the command line argv and returns the exit code.
func Main(argv []string) int {
	a := &app{
		stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv,
		uid: os.Geteuid(), pid: os.Getpid(), force: make(chan struct{}),
	}
	ctx, stop := a.signals()
	defer stop()
	root := a.tree()
	root.SetArgs(argv[1:])
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	return a.exitCode(root.ExecuteContext(ctx))
}

// signals returns a context that the first SIGTERM, SIGINT or SIGHUP cancels.
// The second closes force.
func (a *app) signals() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	go func() {
		<-ch
		cancel()
		<-ch
		close(a.force)
	}()
	return ctx, cancel
}

// Tree is the command tree for documentation: it can be shown, not run.
func Tree() *cobra.Command {
	return (&app{stdout: os.Stdout, stderr: os.Stderr, getenv: func(string) string { return "" }}).tree()
}

func (a *app) tree() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmcred",
		Short: "start microVMs and hand each one its secrets as it starts",
		Long: `vmcred starts microVMs and hands each one its secrets at the moment it starts,
through memory alone, into the guest's own systemd credentials.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return &usageError{c, err} })
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run a VM:"},
		&cobra.Group{ID: "look", Title: "Look before you start:"},
		&cobra.Group{ID: "setup", Title: "Set up:"},
	)
	for group, commands := range map[string][]*cobra.Command{
		"run":   {a.runCommand()},
		"look":  {a.checkCommand(), a.planCommand()},
		"setup": {a.unitsCommand(), a.versionCommand()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	root.SetCompletionCommandGroupID("setup")
	root.SetHelpCommandGroupID("setup")
	return root
}

// usageError is a command line that is wrong.
type usageError struct {
	command *cobra.Command
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }

// Hint names the command's own help.
func (e *usageError) Hint() string { return "see '" + e.command.CommandPath() + " --help'" }

// oneVM wants exactly one VM, by name or path.
func oneVM(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return &usageError{c, errors.New("which VM? give its name, or the path of its file")}
	case len(args) > 1:
		return &usageError{c, errors.New("one VM at a time")}
	}
	return nil
}
