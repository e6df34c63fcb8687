// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/check"
	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/shim"
	"github.com/vmcred/vmcred/vm"
)

// execFlags are those of exec.
type execFlags struct {
	sources       sourceFlags
	name, user    string
	systemd       int
	print, asJSON bool
	format        string
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	c := &cobra.Command{
		Use:   "exec -- PROGRAM ARGUMENT...",
		Short: "start the VM of a hypervisor's command line, and hand it its secrets",
		Long: `Start the VM that a command line of cloud-hypervisor describes, hand it its
secrets, and stay until it ends, as 'vmcred run' does.

What is on the command line is understood, or refused by its name before
anything starts. Its API socket is not opened. Strings of --platform that are
credentials stay what they are: not secret, since every process can read them.

Every name in --credentials, --load-credential and $CREDENTIALS_DIRECTORY is a
secret for the guest: host-api-key becomes HOST_API_KEY there.

A command line of QEMU is only shown, with --print.

Root says whose user the hypervisor gets: --name NAME is vmcred-NAME, and so is
NAME where this program was started as microvm@NAME; --user USER is any other.`,
		Example: `  vmcred exec --credentials /run/my-secrets -- cloud-hypervisor --kernel vmlinux --console off --serial tty
  vmcred exec --print -- cloud-hypervisor --kernel vmlinux --console off
  vmcred exec --print --json -- qemu-system-x86_64 -M q35 -m 1G -kernel bzImage`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{command: c, err: errors.New("which command line? give it after --")}
			}
			return nil
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(c *cobra.Command, args []string) error { return a.exec(c, args, &f) },
	}
	c.Flags().SetInterspersed(false)
	f.sources.add(c)
	c.Flags().StringVar(&f.name, "name", "", "the VM's `NAME`, for messages, its runtime directory and root's user vmcred-NAME")
	c.Flags().StringVar(&f.user, "user", "", "for root: the `USER` the hypervisor runs as")
	c.Flags().IntVar(&f.systemd, "guest-systemd", config.DefaultSystemd, "the `VERSION` of the guest's systemd: before 257 it reads 4096 bytes of strings")
	c.Flags().BoolVar(&f.print, "print", false, "show what was understood and what would be handed over; start nothing")
	c.Flags().BoolVar(&f.asJSON, "json", false, "with --print: print JSON")
	c.Flags().StringVar(&f.format, "log-format", "auto", "`FORMAT` of our own messages: text, json, or auto (the journal in a unit)")
	return c
}

func (a *app) exec(c *cobra.Command, argv []string, f *execFlags) error {
	if f.asJSON && !f.print {
		return &usageError{command: c, err: errors.New("--json is for --print")}
	}
	command, problems, err := a.understand(argv, f)
	if err != nil {
		return err
	}
	if f.print {
		return a.execPrint(c, command, problems, f)
	}
	if command.Spec.Hypervisor != "cloud-hypervisor" {
		return refusedError(&hinted{
			message: "a command line of " + command.Spec.Hypervisor + " is only shown, not run",
			hint:    "vmcred exec --print; or write the VM's file, and use vmcred run",
		})
	}
	log, err := a.newLog(f.format, command.Spec.Name)
	if err != nil {
		return &usageError{command: c, err: err}
	}
	err = a.execRun(c, command, problems, f, log)
	a.lastWords(err, log)
	if f.format == "json" {
		return logError(log, err)
	}
	return err
}

// hinted is an error that knows what to do.
type hinted struct{ message, hint string }

func (e *hinted) Error() string { return e.message }

// Hint says what to do about it.
func (e *hinted) Hint() string { return e.hint }

// understand makes a whole specification of a command line. The problems are
// warnings and notes.
func (a *app) understand(argv []string, f *execFlags) (*shim.Command, vm.Problems, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, nil, err
	}
	command, problems := shim.Parse(argv, dir)
	if command == nil {
		return nil, nil, &runner.RefusedError{Problems: problems}
	}
	for _, n := range command.Notes {
		problems = append(problems, vm.Problem{Severity: vm.Note, Message: n})
	}
	spec := command.Spec
	if spec.Name, err = a.execName(f, spec.Name); err != nil {
		return nil, nil, err
	}
	spec.Guest.Systemd, spec.StopTimeout = f.systemd, config.DefaultStopTimeout
	if spec.Credentials, err = a.given(&f.sources); err != nil {
		return nil, nil, err
	}
	for _, p := range check.Spec(spec, nil, nil) {
		if strings.HasPrefix(p.Field, "static.") || strings.HasPrefix(p.Field, "oem-strings") {
			p.Hint = "take it out of the command line, which every process can read, and give it with --load-credential or --credentials"
			problems = append(problems, p)
		}
	}
	for _, nic := range spec.Interfaces {
		for _, fd := range nic.FDs {
			unix.CloseOnExec(fd) // it is handed over by itself, and to nobody else
		}
	}
	return command, problems, nil
}

// startedAs begins the name under which microvm.nix starts a hypervisor.
const startedAs = "microvm@"

// execName is the VM's name: the flag's, that of how this program was started, the
// command line's own, or, for who needs none, one of this process.
func (a *app) execName(f *execFlags, own string) (string, error) {
	name := f.name
	if as, ok := strings.CutPrefix(a.argv0, startedAs); name == "" && ok {
		name = as
	}
	name = cmp.Or(name, own)
	switch {
	case name != "":
		if err := config.CheckName(name); err != nil {
			return "", refusedError(&hinted{message: err.Error(), hint: "give it another one with --name"})
		}
	default:
		name = a.nameless()
	}
	return name, nil
}

// nameless is the name of a VM that has none.
func (a *app) nameless() string { return "exec-" + strconv.Itoa(a.pid) }

// execIdentity is the user the VMM runs as.
func (a *app) execIdentity(spec *vm.Spec, f *execFlags) (*launch.Identity, error) {
	switch {
	case f.user == "" && a.uid == 0 && spec.Name == a.nameless():
		return nil, refusedError(&hinted{
			message: "no hypervisor runs as root, and the command line does not say which VM this is",
			hint:    "--name NAME, whose user is vmcred-NAME, or --user USER",
		})
	case f.user == "":
		return a.identity(spec)
	case a.uid != 0:
		return nil, refusedError(&hinted{message: "only root can give the hypervisor another user", hint: "leave --user out"})
	}
	id, err := launch.Lookup(f.user)
	if err != nil {
		return nil, refusedError(err)
	}
	return id, nil
}

// given are the credentials that the sources hold: all of them.
func (a *app) given(f *sourceFlags) ([]vm.Credential, error) {
	var names []string
	for _, p := range f.pairs {
		id, _, _ := strings.Cut(p, ":")
		names = append(names, id) // what is wrong with it is opener's to say
	}
	for _, dir := range []string{f.dir, a.getenv("CREDENTIALS_DIRECTORY")} {
		if dir == "" {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, refusedError(err)
		}
		for _, e := range entries {
			if !e.IsDir() && e.Name() != credential.TransferList {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	var out []vm.Credential
	for _, n := range slices.Compact(names) {
		if err := credential.CheckName(n); err != nil {
			return nil, refusedError(err)
		}
		out = append(out, vm.Credential{Host: n, Guest: credential.GuestName(n), Source: vm.Source{Kind: vm.SourceUnit}})
	}
	return out, nil
}

// execOptions are runner's, with the command line's own program.
func (a *app) execOptions(c *cobra.Command, command *shim.Command, f *execFlags) (runner.Options, error) {
	o, err := a.options(c, command.Spec, &f.sources)
	if err != nil {
		return o, err
	}
	if command.Spec.Hypervisor == "cloud-hypervisor" {
		o.Driver = cloudhypervisor.New(cloudhypervisor.Options{Path: command.Program, CacheDir: a.cacheDir(o.Root)})
	}
	return o, nil
}

func (a *app) execRun(c *cobra.Command, command *shim.Command, problems vm.Problems, f *execFlags, log *slog.Logger) error {
	o, err := a.execOptions(c, command, f)
	if err != nil {
		return err
	}
	if o.Identity, err = a.execIdentity(command.Spec, f); err != nil {
		return err
	}
	o.Log, o.VMMLog = log, a.vmmLog(f.format, log)
	if command.OwnReady() {
		o.Notify = withoutReady(notifier(log))
	}
	return a.follow(c, o, problems)
}

// withoutReady leaves READY=1 to who listens at the command line's own address.
func withoutReady(tell func(string)) func(string) {
	return func(state string) {
		lines := slices.DeleteFunc(strings.Split(state, "\n"), func(l string) bool { return l == "READY=1" })
		if len(lines) > 0 {
			tell(strings.Join(lines, "\n"))
		}
	}
}
