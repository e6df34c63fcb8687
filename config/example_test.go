// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// commented is a key behind a "#"; words have a space there.
var commented = regexp.MustCompile(`(?m)^#([a-z-]+:|  [A-Za-z-]+:)`)

// The example is right as it is, and with everything in it that is commented out.
func TestExampleIsRight(t *testing.T) {
	for _, hypervisor := range ExampleHypervisors() {
		for _, name := range []string{"a", strings.Repeat("n", 23)} {
			text, err := Example(name, hypervisor, "/var/lib/vmcred/images")
			if err != nil {
				t.Fatal(err)
			}
			spec, problems := Parse("/x/"+name+".yaml", text)
			if spec == nil || len(problems) > 0 || spec.Hypervisor != hypervisor || spec.Name != name {
				t.Errorf("%s for %s: %v", name, hypervisor, problems)
			}
			if name != "a" {
				continue // a tap's name is shorter
			}
			whole := commented.ReplaceAll(text, []byte("$1"))
			_, problems = Parse("/x/a.yaml", whole)
			for _, p := range problems.Fatal() {
				if !strings.Contains(p.Message, "yet") {
					t.Errorf("with everything: %s", p.Error())
				}
			}
		}
	}
}

// Every key that a VM's file has is in the example.
func TestExampleHasEveryKey(t *testing.T) {
	_, problems := Parse("/x/a.yaml", []byte("version: 1\nnosuchkey: 1\n"))
	var keys []string
	for _, p := range problems {
		if rest, ok := strings.CutPrefix(p.Hint, "the keys here are "); ok {
			keys = strings.Split(rest, ", ")
		}
	}
	if len(keys) < 10 {
		t.Fatalf("found only the keys %q", keys)
	}
	text, err := Example("a", "qemu", "/x")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		// What only one hypervisor has is in the manual.
		only := []string{"qemu", "cloud-hypervisor", "firecracker", "alioth", "crosvm", "kvmtool", "stratovirt"}
		if !slices.Contains(only, k) && !regexp.MustCompile(`(?m)^#?`+k+`:`).Match(text) {
			t.Errorf("the example does not have %s", k)
		}
	}
}

func TestExampleIsRefused(t *testing.T) {
	var f *FindError
	if _, err := Example("Bad Name", "qemu", "/x"); !errors.As(err, &f) || f.Hint() == "" {
		t.Errorf("%v", err)
	}
	if _, err := Example("a", "xen", "/x"); err == nil || !strings.Contains(err.Error(), "cloud-hypervisor, qemu") {
		t.Errorf("%v", err)
	}
}
