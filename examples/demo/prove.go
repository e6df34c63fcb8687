// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/vmcred/vmcred/leak"
)

// service is the name each value has in the guest's demo service.
func service(host string) string { return strings.TrimPrefix(host, "host-") }

// compare holds the guest's words against the plan and the host's own digests.
func compare(_ context.Context, d *demo) error {
	fmt.Println("in the guest, systemd-creds --system list:")
	for _, line := range d.vm.said {
		if row, ok := strings.CutPrefix(line, "list "); ok {
			fmt.Println("  " + row)
		}
	}
	var problems []error
	for name, want := range map[string]string{"environment": "test", "cluster": "example-host"} {
		line := name + " value " + want
		if !slices.Contains(d.vm.said, line) {
			problems = append(problems, fmt.Errorf("the guest did not say %q", line))
		}
	}
	fmt.Println("static, as the service has them: ENVIRONMENT=test CLUSTER=example-host")
	fmt.Println("\nplan, guest and host side by side; digests are SHA-256 of a fresh nonce and the value:")
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  CREDENTIAL\tPLAN\tGUEST\tDIGEST, GUEST\tDIGEST, HOST")
	for _, host := range slices.Sorted(maps.Keys(d.values)) {
		size, digest := d.guestSays(service(host))
		want, announced := d.digest(d.values[host]), d.announced(host)
		fmt.Fprintf(w, "  %s\t%d bytes\t%s bytes\t%.16s…\t%.16s…\n", host, announced, size, digest, want)
		if digest != want || size != fmt.Sprint(announced) || announced != d.values[host].Len() {
			problems = append(problems, fmt.Errorf("%s did not arrive as it was sent", host))
		}
	}
	return errors.Join(append(problems, w.Flush())...)
}

// guestSays finds the guest's line "NAME N bytes sha256 HEX".
func (d *demo) guestSays(name string) (size, digest string) {
	for _, line := range d.vm.said {
		f := strings.Fields(line)
		if len(f) == 5 && f[0] == name && f[2] == "bytes" && f[3] == "sha256" {
			return f[1], f[4]
		}
	}
	return "?", "?"
}

func (d *demo) announced(host string) int {
	for _, e := range d.plan.Plan.Entries {
		if e.Host == host {
			return e.Len
		}
	}
	return -1
}

// search looks for every secret in every place that this user may look at,
// while the VM runs.
func search(ctx context.Context, d *demo) error {
	var list []leak.Needle
	for _, host := range slices.Sorted(maps.Keys(d.values)) {
		list = append(list, leak.Needle{Name: host, Value: d.values[host]})
	}
	needles, err := leak.NewNeedles(list...)
	if err != nil {
		return err
	}
	defer needles.Close()
	s := leak.New(needles, leak.Under("the credentials directory", d.creds))
	if err := s.System(ctx, leak.System{Since: d.began}); err != nil {
		return err
	}
	r := s.Report()
	if err := r.WriteText(os.Stdout); err != nil {
		return err
	}
	if r.Places != 0 {
		return fmt.Errorf("found in %d places where no secret belongs", r.Places)
	}
	return countCopies(ctx, s, d.vm.cmd.Process.Pid)
}
