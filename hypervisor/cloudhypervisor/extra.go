// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/vm"
)

// extraField is where a file says what Extra holds.
const extraField = "cloud-hypervisor.extra"

// object reads one JSON object and nothing behind it; numbers stay as written.
func object(b []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		return nil, errors.New("this is no JSON object")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) || v == nil {
		return nil, errors.New("this is not one JSON object")
	}
	return v, nil
}

// merge changes target as RFC 7396 has it.
func merge(target, patch map[string]any) {
	for key, v := range patch {
		p, isObject := v.(map[string]any)
		switch {
		case v == nil:
			delete(target, key)
		case isObject:
			t, ok := target[key].(map[string]any)
			if !ok {
				t = make(map[string]any, len(p))
				target[key] = t
			}
			merge(t, p)
		default:
			target[key] = v
		}
	}
}

// rule is what Extra may say at one place: a reason to refuse it; else the keys of
// the object that must stand there; else any value.
type rule struct {
	refused string
	keys    map[string]rule
}

// Why keys of cloud-hypervisor's configuration are refused.
const (
	inFile    = "the VM's file has a key of its own for it, which is checked before a start"
	ownRoad   = "it would carry credentials past the plan: they stand under credentials: and static:"
	seesRAM   = "the process behind it sees the guest's whole memory, with the secrets in it"
	ramInFile = "the guest's memory, with the secrets in it, would be a file"
	ramChange = "the guest could let the host swap or dump its memory, with the secrets in it"
	merged    = "another VM can measure whether it has a page in common with this one, a secret's too"
	elsewhere = "what the guest prints would go where console: does not say"
	debugger  = "a debugger sees the guest's whole memory, with the secrets in it"
	noImport  = "systemd does not read SMBIOS strings in a confidential VM: no credential would arrive"
	byNumber  = "it is the number of a descriptor, which cloud-hypervisor does not inherit"
	ownWalls  = "vmcred confines cloud-hypervisor itself, and within this it could not open the guest's console"
)

func refuse(reason string, keys ...string) map[string]rule {
	m := make(map[string]rule, len(keys))
	for _, k := range keys {
		m[k] = rule{refused: reason}
	}
	return m
}

func allow(keys ...string) map[string]rule { return refuse("", keys...) }

// within is an object with these keys.
func within(groups ...map[string]rule) rule {
	all := map[string]rule{}
	for _, g := range groups {
		maps.Copy(all, g)
	}
	return rule{keys: all}
}

// extraRules is VmConfig of cloud-hypervisor v53, vmm/src/vm_config.rs. What it does
// not know it ignores without a word, so a key that is not here is refused.
func extraRules() rule {
	quiet := within(allow("mode"), refuse(elsewhere, "file", "socket"))
	return within(
		refuse(inFile, "payload", "disks", "net", "fs", "vsock", "devices", "watchdog"),
		refuse(seesRAM, "generic_vhost_user", "user_devices", "ivshmem"),
		refuse(ramChange, "pvmemcontrol"),
		refuse(elsewhere, "debug_console"),
		refuse(debugger, "gdb"),
		refuse(ownWalls, "landlock_enable", "landlock_rules"),
		allow("rate_limit_groups", "balloon", "pmem", "rng", "vdpa", "pvpanic", "iommu", "numa", "rtc", "pci_segments", "tpm"),
		map[string]rule{
			"cpus": within(refuse(inFile, "boot_vcpus", "max_vcpus"),
				allow("topology", "kvm_hyperv", "max_phys_bits", "affinity", "features", "nested", "core_scheduling", "profile")),
			"memory": within(refuse(inFile, "size"), refuse(ramInFile, "zones"),
				allow("mergeable", "hotplug_method", "hotplug_size", "hotplugged_size", "shared", "hugepages", "hugepage_size", "prefault", "reserve", "thp")),
			"platform": within(refuse(ownRoad, "oem_strings"), refuse(noImport, "tdx", "sev_snp"), refuse(byNumber, "iommufd_fd"),
				allow("num_pci_segments", "iommu_segments", "iommu_address_width_bits", "iommufd", "vfio_p2p_dma"), allow(smbiosKeys()...)),
			"serial": quiet, "console": quiet,
		},
	)
}

// smbiosKeys are the keys of platform that stand in the SMBIOS table before our strings.
func smbiosKeys() []string {
	return []string{
		"system_serial_number", "serial_number", "system_uuid", "uuid", "system_manufacturer", "system_product_name",
		"system_version", "system_family", "system_sku_number", "chassis_asset_tag",
	}
}

// checkExtra refuses what Extra must not say.
func checkExtra(c *hostcheck.Checker, extra []byte) {
	if len(extra) == 0 {
		return
	}
	patch, err := object(extra)
	if err != nil {
		c.Fault(extraField, err.Error(), "it is merged into cloud-hypervisor's VmConfig")
		return
	}
	follow(c, extraField, patch, extraRules())
	for _, port := range []string{"serial", "console"} {
		o, _ := patch[port].(map[string]any)
		if mode, ok := o["mode"]; ok && mode != "Null" && mode != "Off" {
			c.Fault(extraField+"."+port+".mode", elsewhere, `here it may be "Null" or "Off"`)
		}
	}
	if m, _ := patch["memory"].(map[string]any); m["mergeable"] == true {
		c.Warn(extraField+".memory.mergeable", merged, "leave it out, or let no VM that is not trusted run here")
	}
	platform, _ := patch["platform"].(map[string]any)
	for _, key := range smbiosKeys() {
		// An empty string, or a NUL, ends the table before our strings.
		if s, ok := platform[key].(string); ok && (s == "" || strings.Contains(s, "\x00")) {
			c.Fault(extraField+".platform."+key, "an empty string or a NUL would lose every string after it in the SMBIOS table", "")
		}
	}
	if holds(patch, "io.systemd.credential") {
		c.Fault(extraField, ownRoad, "")
	}
}

// follow reports each key that the rules do not let pass.
func follow(c *hostcheck.Checker, at string, v any, r rule) {
	if r.keys == nil {
		return
	}
	o, ok := v.(map[string]any)
	if !ok {
		c.Fault(at, "this must be a JSON object", "")
		return
	}
	for _, key := range slices.Sorted(maps.Keys(o)) {
		next, known := r.keys[key]
		switch path := at + "." + hostcheck.QuotePath(key); {
		case !known:
			hint := ""
			if near := vm.Nearest(key, slices.Collect(maps.Keys(r.keys))); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			c.Fault(path, "cloud-hypervisor has no such key, and would ignore it without a word", hint)
		case next.refused != "":
			c.Fault(path, "this is refused: "+next.refused, "")
		default:
			follow(c, path, o[key], next)
		}
	}
}

// holds looks for a text in all strings of what JSON was.
func holds(v any, text string) bool {
	switch v := v.(type) {
	case string:
		return strings.Contains(v, text)
	case []any:
		return slices.ContainsFunc(v, func(e any) bool { return holds(e, text) })
	case map[string]any:
		for _, e := range v {
			if holds(e, text) {
				return true
			}
		}
	}
	return false
}
