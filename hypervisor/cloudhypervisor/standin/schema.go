// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
)

// The configuration as vm.create takes it, as far as a driver could use it. Keys
// that are not here are ignored, as the real program ignores unknown ones.

func optional(k kind) field         { return field{kind: k, null: true} }
func required(k kind) field         { return field{kind: k, required: true} }
func byDefault(k kind, v any) field { return field{kind: k, fallback: v} }

func text() kind { return stringKind("a string") }
func path() kind { return stringKind("path string") }

func vmSchema() *schema {
	disk, fs, user := structOf(diskSchema()), structOf(fsSchema()), structOf(userSchema())
	return &schema{name: "VmConfig", fields: map[string]field{
		"cpus": byDefault(structOf(cpusSchema()), object{
			"boot_vcpus": uint64(1), "max_vcpus": uint64(1), "max_phys_bits": uint64(46), "nested": true,
		}),
		"memory":             byDefault(structOf(memorySchema()), object{"size": uint64(512 << 20), "shared": false}),
		"payload":            optional(structOf(payloadSchema())),
		"disks":              optional(listOf(disk)),
		"net":                optional(listOf(structOf(netSchema()))),
		"rng":                byDefault(structOf(rngSchema()), object{"src": "/dev/urandom"}),
		"balloon":            optional(structOf(balloonSchema())),
		"fs":                 optional(listOf(fs)),
		"generic_vhost_user": optional(listOf(user)),
		"serial":             byDefault(structOf(consoleSchema("SerialConfig")), object{"mode": "Null"}),
		"console":            byDefault(structOf(consoleSchema("ConsoleConfig")), object{"mode": "Tty"}),
		"vsock":              optional(structOf(vsockSchema())),
		"platform":           optional(structOf(platformSchema())),
		"pvpanic":            byDefault(boolKind, false),
		"iommu":              byDefault(boolKind, false),
		"watchdog":           byDefault(boolKind, false),
		"landlock_enable":    byDefault(boolKind, false),
		"landlock_rules":     optional(listOf(structOf(ruleSchema()))),
	}}
}

func cpusSchema() *schema {
	return &schema{name: "CpusConfig", fields: map[string]field{
		"boot_vcpus":    required(unsigned(32, "u32")),
		"max_vcpus":     required(unsigned(32, "u32")),
		"max_phys_bits": byDefault(unsigned(8, "u8"), uint64(46)),
		"kvm_hyperv":    byDefault(boolKind, false),
		"nested":        byDefault(boolKind, true),
	}}
}

func memorySchema() *schema {
	return &schema{name: "MemoryConfig", fields: map[string]field{
		"size":           required(unsigned(64, "u64")),
		"mergeable":      byDefault(boolKind, false),
		"hotplug_method": byDefault(oneOf("Acpi", "VirtioMem"), "Acpi"),
		"hotplug_size":   optional(unsigned(64, "u64")),
		"shared":         byDefault(boolKind, false),
		"hugepages":      byDefault(boolKind, false),
		"hugepage_size":  optional(unsigned(64, "u64")),
		"prefault":       byDefault(boolKind, false),
		"reserve":        byDefault(boolKind, false),
		"thp":            byDefault(boolKind, true),
	}}
}

func payloadSchema() *schema {
	return &schema{name: "PayloadConfig", fields: map[string]field{
		"firmware": optional(path()), "kernel": optional(path()),
		"cmdline": optional(text()), "initramfs": optional(path()),
	}}
}

// device adds what every PCI device may have.
func device(s *schema) *schema {
	s.fields["id"] = optional(text())
	s.fields["iommu"] = optional(boolKind)
	s.fields["pci_segment"] = byDefault(unsigned(16, "u16"), uint64(0))
	s.fields["pci_device_id"] = optional(unsigned(8, "u8"))
	return s
}

func diskSchema() *schema {
	return device(&schema{name: "DiskConfig", fields: map[string]field{
		"path":          optional(path()),
		"readonly":      byDefault(boolKind, false),
		"direct":        byDefault(boolKind, false),
		"num_queues":    byDefault(unsigned(64, "usize"), uint64(1)),
		"queue_size":    byDefault(unsigned(16, "u16"), uint64(128)),
		"vhost_user":    byDefault(boolKind, false),
		"vhost_socket":  optional(text()),
		"serial":        optional(text()),
		"backing_files": byDefault(boolKind, false),
		"sparse":        byDefault(boolKind, true),
		"image_type":    byDefault(oneOf("FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown"), "Unknown"),
	}})
}

func netSchema() *schema {
	return device(&schema{name: "NetConfig", fields: map[string]field{
		"tap":          optional(text()),
		"ip":           optional(text()),
		"mask":         optional(text()),
		"mac":          byDefault(macKind, randomMAC()),
		"mtu":          optional(unsigned(16, "u16")),
		"num_queues":   byDefault(unsigned(64, "usize"), uint64(2)),
		"queue_size":   byDefault(unsigned(16, "u16"), uint64(256)),
		"vhost_user":   byDefault(boolKind, false),
		"vhost_socket": optional(text()),
		"vhost_mode":   byDefault(oneOf("Client", "Server"), "Client"),
		"fds":          optional(listOf(anything)),
		"offload_tso":  byDefault(boolKind, true),
		"offload_ufo":  byDefault(boolKind, true),
		"offload_csum": byDefault(boolKind, true),
	}})
}

func macKind(d *decoder, t json.Token) (any, error) {
	s, ok := t.(string)
	if !ok {
		return nil, d.wrong(t, "a string")
	}
	if mac, err := net.ParseMAC(s); err != nil || len(mac) != 6 {
		return nil, d.fault("The provided MAC address is invalid: parsing of %s into a MAC address failed", s)
	}
	return s, nil
}

func randomMAC() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("2e:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4])
}

func fsSchema() *schema {
	return device(&schema{name: "FsConfig", fields: map[string]field{
		"tag": required(text()), "socket": required(path()),
		"num_queues": byDefault(unsigned(64, "usize"), uint64(1)),
		"queue_size": byDefault(unsigned(16, "u16"), uint64(1024)),
	}})
}

func userSchema() *schema {
	return device(&schema{name: "GenericVhostUserConfig", fields: map[string]field{
		"socket": required(path()), "device_type": required(unsigned(32, "u32")),
		"queue_sizes": required(listOf(unsigned(16, "u16"))),
	}})
}

func rngSchema() *schema {
	return device(&schema{name: "RngConfig", fields: map[string]field{"src": required(path())}})
}

func balloonSchema() *schema {
	return device(&schema{name: "BalloonConfig", fields: map[string]field{
		"size": required(unsigned(64, "u64")), "deflate_on_oom": byDefault(boolKind, false),
		"free_page_reporting": byDefault(boolKind, false),
	}})
}

func consoleSchema(name string) *schema {
	return device(&schema{name: name, fields: map[string]field{
		"mode":   required(oneOf("Off", "Pty", "Tty", "File", "Socket", "Null")),
		"file":   optional(path()),
		"socket": optional(path()),
	}})
}

func vsockSchema() *schema {
	return device(&schema{name: "VsockConfig", fields: map[string]field{
		"cid": required(unsigned(32, "u32")), "socket": required(path()),
	}})
}

func platformSchema() *schema {
	s := &schema{name: "PlatformConfig", fields: map[string]field{
		"num_pci_segments": byDefault(unsigned(16, "u16"), uint64(1)),
		"oem_strings":      optional(listOf(text())),
		"system_uuid":      optional(text()),
		"uuid":             optional(text()),
		"serial_number":    optional(text()),
	}}
	for _, name := range systemStrings() {
		s.fields[name] = optional(text())
	}
	return s
}

// systemStrings are the strings of the system's structure, in their order.
func systemStrings() []string {
	return []string{
		"system_manufacturer", "system_product_name", "system_version",
		"system_serial_number", "system_sku_number", "system_family",
	}
}

func ruleSchema() *schema {
	return &schema{name: "LandlockConfig", fields: map[string]field{
		"path": required(path()), "access": required(text()),
	}}
}
