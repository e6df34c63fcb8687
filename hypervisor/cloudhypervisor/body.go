// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// vmConfig is VmConfig of cloud-hypervisor's vmm/src/vm_config.rs, as far as it is
// used here and without the strings. It knows no key twice and ignores what it
// does not know, so the names are checked against what vm.info gives back.
type vmConfig struct {
	CPUs     cpusConfig     `json:"cpus"`
	Memory   memoryConfig   `json:"memory"`
	Payload  payloadConfig  `json:"payload"`
	Disks    []diskConfig   `json:"disks,omitempty"`
	RNG      rngConfig      `json:"rng"`
	Shares   []fsConfig     `json:"fs,omitempty"`
	Serial   outputConfig   `json:"serial"`
	Console  outputConfig   `json:"console"` // virtio-console; Tty if nothing is said
	Devices  []deviceConfig `json:"devices,omitempty"`
	Vsock    *vsockConfig   `json:"vsock,omitempty"`
	Watchdog bool           `json:"watchdog"`

	extra []byte // is merged into all of the above
}

type cpusConfig struct {
	Boot int `json:"boot_vcpus"`
	Max  int `json:"max_vcpus"`
}

type memoryConfig struct {
	Size   int64 `json:"size"`             // bytes
	Shared bool  `json:"shared,omitempty"` // with another process: a virtiofsd
}

type payloadConfig struct {
	Firmware  string `json:"firmware,omitempty"`
	Kernel    string `json:"kernel,omitempty"`
	Initramfs string `json:"initramfs,omitempty"`
	Cmdline   string `json:"cmdline,omitempty"`
}

type diskConfig struct {
	Path      string `json:"path"`
	ReadOnly  bool   `json:"readonly"`
	Direct    bool   `json:"direct,omitempty"`
	Queues    int    `json:"num_queues,omitempty"` // 1
	Serial    string `json:"serial,omitempty"`
	ImageType string `json:"image_type,omitempty"` // "Raw", "Qcow2"; since v51
}

type rngConfig struct {
	Src string `json:"src"`
}

// fsConfig is a share of the virtiofsd that listens at the socket.
type fsConfig struct {
	Tag       string `json:"tag"`
	Socket    string `json:"socket"`
	Queues    int    `json:"num_queues"`
	QueueSize int    `json:"queue_size"`
}

type deviceConfig struct {
	Path string `json:"path"`
}

type vsockConfig struct {
	CID    uint32 `json:"cid"`
	Socket string `json:"socket"`
}

// outputConfig is where a serial port leads.
type outputConfig struct {
	Mode   string `json:"mode"` // "Off", "File", "Socket"
	File   string `json:"file,omitempty"`
	Socket string `json:"socket,omitempty"`
}

// paths are the names that the files of one start have in the VMM.
type paths struct {
	serial  string   // what the guest's serial port writes to; empty: nothing
	console string   // the socket that the serial port is; empty: it is none
	vsock   string   // empty: the specification's
	shares  []string // a virtiofsd's socket for each share; empty: the specification's
}

// share is the socket of share i.
func (p paths) share(i int, s vm.Share) string {
	if i < len(p.shares) && p.shares[i] != "" {
		return p.shares[i]
	}
	return s.Socket
}

// socketMax is the longest name that a unix socket can have, in bytes.
const socketMax = 107

// widest are names as long as any that a start can have.
func widest(spec *vm.Spec) paths {
	p := paths{serial: serialPath(99)}
	name := "/" + strings.Repeat("x", socketMax-1)
	if spec.Vsock != nil && spec.Vsock.Socket == "" {
		p.vsock = name
	}
	if spec.Console.Mode == vm.ConsoleSocket {
		p.console = name
	}
	for _, s := range spec.Shares {
		at := ""
		if s.Socket == "" {
			at = name
		}
		p.shares = append(p.shares, at)
	}
	return p
}

// What cloud-hypervisor's own command line gives a share.
const (
	shareQueues    = 1
	shareQueueSize = 1024
)

// configOf turns the specification into cloud-hypervisor's.
func configOf(spec *vm.Spec, v version, p paths) vmConfig {
	c := vmConfig{
		CPUs:     cpusConfig{Boot: spec.CPUs, Max: max(spec.CPUs, spec.MaxCPUs)},
		Memory:   memoryConfig{Size: spec.Memory, Shared: len(spec.Shares) > 0},
		Payload:  payloadConfig{Firmware: spec.Boot.Firmware, Kernel: spec.Boot.Kernel, Initramfs: spec.Boot.Initrd, Cmdline: spec.Boot.Cmdline},
		RNG:      rngConfig{Src: "/dev/urandom"},
		Serial:   outputConfig{Mode: "Off"},
		Console:  outputConfig{Mode: "Off"},
		Watchdog: spec.Watchdog,
		extra:    spec.CloudHypervisor.Extra,
	}
	if p.serial != "" {
		c.Serial = outputConfig{Mode: "File", File: p.serial}
	}
	if p.console != "" {
		c.Serial = outputConfig{Mode: "Socket", Socket: p.console}
	}
	for _, d := range spec.Disks {
		disk := diskConfig{Path: d.Path, ReadOnly: d.ReadOnly, Direct: d.Direct, Queues: d.Queues, Serial: d.Serial}
		if !v.Less(imageTypes) {
			disk.ImageType = map[string]string{"raw": "Raw", "qcow2": "Qcow2", "vhd": "FixedVhd", "vhdx": "Vhdx"}[d.Format]
		}
		c.Disks = append(c.Disks, disk)
	}
	for i, s := range spec.Shares {
		c.Shares = append(c.Shares, fsConfig{Tag: s.Tag, Socket: p.share(i, s), Queues: shareQueues, QueueSize: shareQueueSize})
	}
	for _, d := range spec.Devices {
		c.Devices = append(c.Devices, deviceConfig{Path: d})
	}
	if spec.Vsock != nil {
		c.Vsock = &vsockConfig{CID: spec.Vsock.CID, Socket: spec.Vsock.Socket}
		if p.vsock != "" {
			c.Vsock.Socket = p.vsock
		}
	}
	return c
}

// public is the body without the strings: all but platform, and what platform
// holds beside them. Each is an object, and platform nil if there is none.
func (c vmConfig) public() (rest, platform []byte, err error) {
	typed, err := json.Marshal(c)
	if err != nil {
		return nil, nil, err
	}
	whole, err := object(typed)
	if err != nil {
		return nil, nil, err
	}
	if len(c.extra) > 0 {
		patch, err := object(c.extra)
		if err != nil {
			return nil, nil, err
		}
		merge(whole, patch)
	}
	if p, ok := whole["platform"]; ok {
		if platform, err = marshal(p); err != nil {
			return nil, nil, err
		}
		delete(whole, "platform")
	}
	rest, err = marshal(whole)
	return rest, platform, err
}

// marshal is json.Marshal without HTML in mind, which would take room.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// Around the strings, which platform holds.
const (
	stringsBegin = `"oem_strings":[`
	stringsEnd   = `]`
)

// createBody is the body of vm.create: public JSON, and the values between it.
func createBody(c vmConfig, oem []secret.Rope) (secret.Rope, error) {
	rest, platform, err := c.public()
	if err != nil {
		return nil, err
	}
	head := string(rest[:len(rest)-1])
	if len(oem) == 0 && platform == nil {
		return secret.Rope{{Text: head + "}"}}, nil
	}
	head += `,"platform":`
	if len(oem) == 0 {
		return secret.Rope{{Text: head + string(platform) + "}"}}, nil
	}
	inner := "{"
	if len(platform) > len("{}") {
		inner = string(platform[:len(platform)-1]) + ","
	}
	body := secret.Rope{{Text: head + inner + stringsBegin}}
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
	return append(body, secret.Piece{Text: stringsEnd + "}}"}), nil
}
