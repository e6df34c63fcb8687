// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/vm"
)

func (a *app) checkCommand() *cobra.Command {
	var (
		sources sourceFlags
		asJSON  bool
	)
	c := &cobra.Command{
		Use:   "check VM",
		Short: "look for mistakes in a VM's file, its names and this host; reads no value",
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE: func(c *cobra.Command, args []string) error {
			return a.check(c, args[0], &sources, asJSON)
		},
	}
	sources.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) check(c *cobra.Command, arg string, sources *sourceFlags, asJSON bool) error {
	spec, problems, err := a.load(arg)
	if err != nil {
		return err
	}
	o, err := a.options(c, spec, sources)
	if err != nil {
		return err
	}
	info, err := o.Driver.Probe(c.Context())
	if err != nil {
		return refusedError(err)
	}
	problems = append(problems, o.Driver.Check(spec, info)...)
	if asJSON {
		return json.NewEncoder(a.stdout).Encode(struct {
			VM       string      `json:"vm"`
			Problems vm.Problems `json:"problems"`
		}{spec.Name, problems})
	}
	a.showProblems(a.stdout, problems)
	fmt.Fprintln(a.stdout, "ok")
	return nil
}
