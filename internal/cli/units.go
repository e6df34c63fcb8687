// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/unit"
)

func (a *app) unitsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "units VM",
		Short: "print the systemd drop-in that hands a VM's unit its credentials",
		Long: `Print the drop-in for the VM's unit, vmcred@NAME.service: one LoadCredential=
line for each credential whose file the VM's file names. It changes nothing;
its first lines say where it belongs and how the VM's user is made.`,
		Example: `  vmcred units test-vm
  mkdir -p /etc/systemd/system/vmcred@test-vm.service.d
  vmcred units test-vm > /etc/systemd/system/vmcred@test-vm.service.d/vmcred.conf`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE: func(_ *cobra.Command, args []string) error {
			spec, warnings, err := a.load(args[0])
			if err != nil {
				return err
			}
			text, err := unit.DropIn(spec)
			if err != nil {
				return refusedError(err)
			}
			a.showProblems(a.stderr, warnings)
			_, err = a.out.Write(text)
			return err
		},
	}
}

// completeVM offers the names of the VMs that have a file.
func (a *app) completeVM(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	dir, err := config.Dir(a.uid, a.getenv)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	names, err := config.Names(dir)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return names, cobra.ShellCompDirectiveDefault
}
