// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/vm"
)

const (
	// smbiosTable is the longest SMBIOS table in bytes: its 2.1 entry point has
	// 16 bits for it. QEMU refuses more by itself, and with the 64-bit entry
	// point SeaBIOS would cut it without a word.
	smbiosTable = 65535
	// smbiosOwn is kept for what is not ours: QEMU's own structures (309 bytes
	// with 1 GiB on 7.2), SeaBIOS's type 0 (67), and room for other versions.
	smbiosOwn = 1024
	// Each started 16 GiB of memory is one more type 17 of 53 bytes, of 54 when
	// its number has two digits; a second range of addresses is a type 19.
	smbiosDIMM      = 54
	smbiosDIMMBytes = 16 << 30
	smbiosRange     = 33
	// structMax is what a guest's systemd before 257 reads of one structure: a
	// page of /sys/firmware/dmi/entries/11-N/raw.
	structMax = 4096

	// fwCfgOwn is kept for the files QEMU itself adds: 16 on q35 with a kernel
	// on 7.2, and as many again for other versions. One file too many aborts it.
	fwCfgOwn = 32
	// fwCfgItems: each takes a descriptor, and a process has 1024 unless told
	// otherwise. QEMU itself takes some 16,000 items.
	fwCfgItems = 512
)

// Offers says what QEMU carries on q35: SMBIOS strings up to what the table has
// room for with this much memory, and fw_cfg items.
func (d *Driver) Offers(spec *vm.Spec, _ hypervisor.Info) []delivery.Offer {
	return []delivery.Offer{{
		Channel:   delivery.SMBIOS,
		NameMax:   credential.MaxName,
		TotalMax:  smbiosRoom(spec.Memory),
		StructMax: structMax,
		Empty:     true,
		Raw:       true,
		Needs:     "CONFIG_DMI_SYSFS",
		Why:       "QEMU's SMBIOS table, which is 65,535 bytes with its own structures",
	}, {
		Channel: delivery.FwCfg,
		Items:   fwCfgItems,
		ItemMax: credential.MaxValue,
		NameMax: credential.FwCfgNameMax,
		Empty:   true,
		Needs:   "qemu_fw_cfg module",
		Why:     "QEMU's fw_cfg: 55 bytes for a key, which is opt/io.systemd.credentials/ and 28 for the name",
	}}
}

// smbiosRoom is what is left of the table for us, in bytes: never 0, which is no
// limit in an offer.
func smbiosRoom(memory int64) int {
	dimms := int((memory + smbiosDIMMBytes - 1) / smbiosDIMMBytes)
	return max(1, smbiosTable-smbiosOwn-smbiosRange-smbiosDIMM*dimms)
}
