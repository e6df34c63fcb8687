// SPDX-License-Identifier: Apache-2.0

package config

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed example.yaml
var example string

// ExampleHypervisors are those that Example knows.
func ExampleHypervisors() []string { return []string{"cloud-hypervisor", "qemu"} }

// Example is a VM's file to start from, for a VM of that name: it can be loaded as
// it is, and says of each key what it is for. What it boots is expected below
// images, an absolute directory.
func Example(name, hypervisor, images string) ([]byte, error) {
	if err := CheckName(name); err != nil {
		return nil, &FindError{Message: err.Error(), Tip: "choose another name: it becomes a user's and a unit's"}
	}
	if !slices.Contains(ExampleHypervisors(), hypervisor) {
		return nil, fmt.Errorf("there is no example for the hypervisor %q: there is one for %s", hypervisor, strings.Join(ExampleHypervisors(), ", "))
	}
	return []byte(strings.NewReplacer("NAME", name, "HYPERVISOR", hypervisor, "IMAGES", images).Replace(example)), nil
}
