// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"encoding/json"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// vmConfig is VmConfig of cloud-hypervisor's vmm/src/vm_config.rs, as far as it is
// used here and without the strings. It knows no key twice and ignores what it
// does not know, so the names are checked against what vm.info gives back.
type vmConfig struct {
	CPUs    cpusConfig    `json:"cpus"`
	Memory  memoryConfig  `json:"memory"`
	Payload payloadConfig `json:"payload"`
	Disks   []diskConfig  `json:"disks,omitempty"`
	RNG     rngConfig     `json:"rng"`
	Serial  outputConfig  `json:"serial"`
	Console outputConfig  `json:"console"` // virtio-console; Tty if nothing is said
}

type cpusConfig struct {
	Boot int `json:"boot_vcpus"`
	Max  int `json:"max_vcpus"`
}

type memoryConfig struct {
	Size int64 `json:"size"` // bytes
}

type payloadConfig struct {
	Kernel    string `json:"kernel"`
	Initramfs string `json:"initramfs,omitempty"`
	Cmdline   string `json:"cmdline,omitempty"`
}

type diskConfig struct {
	Path      string `json:"path"`
	ReadOnly  bool   `json:"readonly"`
	Serial    string `json:"serial,omitempty"`
	ImageType string `json:"image_type,omitempty"` // "Raw", "Qcow2"; since v51
}

type rngConfig struct {
	Src string `json:"src"`
}

// outputConfig is where a serial port leads.
type outputConfig struct {
	Mode string `json:"mode"` // "Off", "File"
	File string `json:"file,omitempty"`
}

// configOf turns the specification into cloud-hypervisor's. serial is the file of
// the guest's serial port, empty without one.
func configOf(spec *vm.Spec, v version, serial string) vmConfig {
	c := vmConfig{
		CPUs:    cpusConfig{Boot: spec.CPUs, Max: spec.CPUs},
		Memory:  memoryConfig{Size: spec.Memory},
		Payload: payloadConfig{Kernel: spec.Boot.Kernel, Initramfs: spec.Boot.Initrd, Cmdline: spec.Boot.Cmdline},
		RNG:     rngConfig{Src: "/dev/urandom"},
		Serial:  outputConfig{Mode: "Off"},
		Console: outputConfig{Mode: "Off"},
	}
	if serial != "" {
		c.Serial = outputConfig{Mode: "File", File: serial}
	}
	for _, d := range spec.Disks {
		disk := diskConfig{Path: d.Path, ReadOnly: d.ReadOnly, Serial: d.Serial}
		if !v.Less(imageTypes) {
			disk.ImageType = map[string]string{"": "Raw", "raw": "Raw", "qcow2": "Qcow2"}[d.Format]
		}
		c.Disks = append(c.Disks, disk)
	}
	return c
}

// Around the strings; a body without strings has neither.
const (
	stringsBegin = `,"platform":{"oem_strings":[`
	stringsEnd   = `]}}`
)

// createBody is the body of vm.create: public JSON, and the values between it.
func createBody(c vmConfig, oem []secret.Rope) (secret.Rope, error) {
	public, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if len(oem) == 0 {
		return secret.Rope{{Text: string(public)}}, nil
	}
	body := secret.Rope{{Text: string(public[:len(public)-1]) + stringsBegin}}
	for i, r := range oem {
		open := `"`
		if i > 0 {
			open = `,"`
		}
		body = append(body, secret.Piece{Text: open})
		for _, p := range r {
			if p.Secret == nil {
				p.Text = string(credential.AppendJSON(nil, p.Text))
			}
			body = append(body, p) // a value is base64 here, which JSON takes as it is
		}
		body = append(body, secret.Piece{Text: `"`})
	}
	return append(body, secret.Piece{Text: stringsEnd}), nil
}
