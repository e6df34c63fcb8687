// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/vm"
)

// completionCommand stands in for cobra's own, which has shells that Linux has
// not, and no words for one that is unknown.
func (a *app) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "print what makes a shell complete commands, flags and VMs",
		Long: `Print what makes a shell complete vmcred's commands and flags, and the names of
your VMs. SHELL is bash, zsh or fish. A package or make install has it in place.
For bash it needs the package bash-completion, or it says "command not found".`,
		Example: `  source <(vmcred completion bash)
  vmcred completion bash > ~/.local/share/bash-completion/completions/vmcred
  vmcred completion zsh > ~/.zfunc/_vmcred      # with fpath+=~/.zfunc before compinit
  vmcred completion fish > ~/.config/fish/completions/vmcred.fish`,
		ValidArgs: shells,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{command: c, err: errors.New("for which shell? give " + strings.Join(shells, ", "))}
			}
			return noArgs(c, args[1:])
		},
		RunE: func(c *cobra.Command, args []string) error {
			write, ok := map[string]func(io.Writer) error{
				"bash": func(w io.Writer) error { return c.Root().GenBashCompletionV2(w, true) },
				"zsh":  c.Root().GenZshCompletion,
				"fish": func(w io.Writer) error { return c.Root().GenFishCompletion(w, true) },
			}[args[0]]
			if !ok {
				e := &usageError{command: c, err: fmt.Errorf("no completion for %q: there is %s", args[0], strings.Join(shells, ", "))}
				if near := vm.Nearest(args[0], shells); near != "" {
					e.hint = "did you mean " + near + "?"
				}
				return e
			}
			return write(a.out)
		},
	}
}
