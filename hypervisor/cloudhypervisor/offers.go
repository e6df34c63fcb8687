// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// Offers says what cloud-hypervisor carries: strings in one SMBIOS structure, as
// many as its byte counts and as the body of one request has room for.
func (d *Driver) Offers(spec *vm.Spec, info hypervisor.Info) []delivery.Offer {
	return []delivery.Offer{{
		Channel:  delivery.SMBIOS,
		Items:    maxStrings,
		NameMax:  credential.MaxName,
		TotalMax: stringsRoom(spec, parseInfo(info)),
		Structs:  1,
		Empty:    true,
		Raw:      true,
		JSON:     true,
		Needs:    "CONFIG_DMI_SYSFS",
		Why:      "cloud-hypervisor takes 51,200 bytes in one request, with the VM's own configuration",
	}}
}

const (
	// maxStrings: the count is one byte, and cloud-hypervisor does not look.
	maxStrings = 255
	// bodyMax is what its server takes of one request, in every release up to v53.
	bodyMax = 51_200
	// tableMax is what fits between its SMBIOS table's place and the end of that
	// segment; it writes over the guest's memory beyond.
	tableMax = 65_398
)

// stringsRoom is what the body leaves for the strings, and never 0, which is no
// limit in an offer.
func stringsRoom(spec *vm.Spec, v version) int {
	body, err := createBody(configOf(spec, v, widest(spec)), []secret.Rope{nil})
	if err != nil {
		return 1
	}
	return max(1, min(bodyMax-body.Len(), tableMax))
}
