// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/unit"
	"github.com/vmcred/vmcred/vm"
)

// systemImages is where an example looks for what root's VMs boot; an ordinary
// user's is below $HOME.
const systemImages = "/var/lib/vmcred/images"

func (a *app) initCommand() *cobra.Command {
	var (
		hypervisor string
		toStdout   bool
	)
	c := &cobra.Command{
		Use:   "init NAME",
		Short: "write a VM's file to start from, with a line about each key",
		Long: `Write a VM's file to start from, with a line about each key, where the name is
looked up: /etc/vmcred/vms/NAME.yaml for root, an ordinary user's
$XDG_CONFIG_HOME/vmcred/vms/NAME.yaml. A file that is there is left alone.`,
		Example: `  vmcred init test-vm
  vmcred init test-vm --hypervisor cloud-hypervisor --stdout`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{command: c, err: errors.New("which name is the VM to have?")}
			}
			return noArgs(c, args[1:])
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains(config.ExampleHypervisors(), hypervisor) {
				return unknownHypervisor(c, hypervisor)
			}
			return a.initVM(args[0], hypervisor, toStdout)
		},
	}
	c.Flags().StringVar(&hypervisor, "hypervisor", "qemu", "the VM's hypervisor: `NAME` is "+strings.Join(config.ExampleHypervisors(), " or "))
	c.Flags().BoolVar(&toStdout, "stdout", false, "print the file and write nothing")
	_ = c.RegisterFlagCompletionFunc("hypervisor", cobra.FixedCompletions(config.ExampleHypervisors(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

func unknownHypervisor(c *cobra.Command, name string) error {
	there := config.ExampleHypervisors()
	e := &usageError{command: c, err: fmt.Errorf("there is no hypervisor %q: there is %s", name, strings.Join(there, ", "))}
	if near := vm.Nearest(name, there); near != "" {
		e.hint = "did you mean " + near + "?"
	}
	return e
}

func (a *app) initVM(name, hypervisor string, toStdout bool) error {
	images := systemImages
	if a.uid != 0 {
		images = filepath.Join(a.getenv("HOME"), ".local/share/vmcred/images")
		if !filepath.IsAbs(images) {
			images = systemImages
		}
	}
	text, err := config.Example(name, hypervisor, images)
	if err != nil {
		return refusedError(err)
	}
	if toStdout {
		_, err := a.out.Write(text)
		return err
	}
	dir, err := config.Dir(a.uid, a.getenv)
	if err != nil {
		return refusedError(err)
	}
	path, err := writeNew(dir, name, text)
	if err != nil {
		return refusedError(err)
	}
	a.nextSteps(name, path)
	return nil
}

// fileError is a VM's file that was not written.
type fileError struct{ message, hint string }

func (e *fileError) Error() string { return e.message }
func (e *fileError) Hint() string  { return e.hint }

// writeNew writes a new VM's file, which everybody may read: it holds no secret.
func writeNew(dir, name string, text []byte) (string, error) {
	// Whatever the umask: in a directory that others can write no file is read.
	defer syscall.Umask(syscall.Umask(0o022))
	for _, ext := range []string{".yaml", ".json"} {
		path := filepath.Join(dir, name+ext)
		if _, err := os.Lstat(path); err == nil {
			return "", &fileError{"the VM " + name + " has a file: " + console.QuotePath(path), "look at it with: vmcred check " + name}
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name+".yaml")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return "", &fileError{console.QuotePath(path) + " is there already", "look at it with: vmcred check " + name}
	}
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(path)) // half a file is none
	}
	return path, nil
}

func (a *app) nextSteps(name, path string) {
	fmt.Fprintf(a.out, "wrote %s\n\nnext:\n", console.QuotePath(path))
	fmt.Fprintf(a.out, "  edit it: the kernel and the initrd, and what the VM gets\n")
	if a.uid == 0 {
		fmt.Fprintf(a.out, "  %s\n", unit.UserCommand(name))
	}
	fmt.Fprintf(a.out, "  vmcred check %s\n  vmcred run %s\n", name, name)
	if a.uid == 0 {
		fmt.Fprintf(a.out, "or as a unit, which makes that user itself:\n  systemctl daemon-reload\n  systemctl start %s\n", unit.OwnUnit(name))
	}
}
