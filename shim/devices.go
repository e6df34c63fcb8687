// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/base64"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// The two forms in which systemd reads a credential from an SMBIOS string.
const (
	textForm   = credentialPrefix + ":"
	binaryForm = credentialPrefix + ".binary:"
)

// oemString takes one string. What it holds is never shown.
func (p *parser) oemString(o *options, i int, s string) {
	which := fmt.Sprintf("string %d", i+1)
	pair, text := strings.CutPrefix(s, textForm)
	if !text {
		var binary bool
		if pair, binary = strings.CutPrefix(s, binaryForm); !binary {
			if s == "" {
				o.fault("oem_strings", which+" is empty, and every string after it would be lost", "")
				return
			}
			p.spec.OEMStrings = append(p.spec.OEMStrings, s)
			return
		}
	}
	name, value, ok := strings.Cut(pair, "=")
	if !ok || name == "" {
		o.fault("oem_strings", which+" is not NAME=VALUE after its colon", "")
		return
	}
	if !text {
		b, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			o.fault("oem_strings", which+", the credential "+quote(name)+", is no base64", "")
			return
		}
		value = string(b)
	}
	if slices.ContainsFunc(p.spec.Static, func(st vm.Static) bool { return st.Name == name }) {
		o.fault("oem_strings", which+": the credential "+quote(name)+" is there twice, and the guest drops the second", "")
		return
	}
	p.spec.Static = append(p.spec.Static, vm.Static{Name: name, Value: value})
}

// imageTypes are the formats a disk can have.
func imageTypes() map[string]string {
	return map[string]string{"raw": "raw", "qcow2": "qcow2", "vhd": "vhd", "vhdx": "vhdx"}
}

func (p *parser) disk(f flag, w word) {
	o := p.options(f, w, known("path", "readonly", "direct", "num_queues", "serial", "image_type").
		but(seesRAM, "vhost_user", "socket").
		but(notHandedOn, "queue_size", "bw_size", "bw_one_time_burst", "bw_refill_time", "ops_size", "ops_one_time_burst", "ops_refill_time",
			"_disable_io_uring", "_disable_aio", "rate_limit_group", "queue_affinity", "backing_files", "sparse", "lock_granularity",
			"id", "iommu", "pci_segment", "pci_device_id"))
	d := vm.Disk{
		Path: o.path("path"), ReadOnly: o.toggle("readonly", false), Direct: o.toggle("direct", false),
		Serial: o.text("serial"), Queues: int(o.number("num_queues", 0, 1<<16-1)),
	}
	d.Format, _ = o.choice("image_type", imageTypes())
	p.spec.Disks = append(p.spec.Disks, d)
}

// mac is an address as cloud-hypervisor reads it.
func mac() *regexp.Regexp { return regexp.MustCompile(`^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$`) }

func (p *parser) net(f flag, w word) {
	o := p.options(f, w, known("tap", "mac", "num_queues", "fd").
		but("vmcred opens the tap that there is, and sets nothing on it: use ip addr and ip link before", "ip", "mask", "host_mac", "mtu").
		but(seesRAM, "vhost_user", "socket", "vhost_mode").
		but(notHandedOn, "offload_tso", "offload_ufo", "offload_csum", "queue_size", "bw_size", "bw_one_time_burst", "bw_refill_time",
			"ops_size", "ops_one_time_burst", "ops_refill_time", "id", "iommu", "pci_segment", "pci_device_id"))
	nic := vm.Interface{Type: "tap", ID: o.text("tap"), MAC: o.text("mac"), FDs: o.list("fd")}
	queues := o.number("num_queues", 2, 1<<16-1)
	switch {
	case o.has("tap") && o.has("fd"):
		o.fault("", "there are both tap= and fd=", "")
	case !o.has("tap") && !o.has("fd"):
		o.fault("", "there is neither tap= nor fd=", "the program would make a tap, which takes root: make it before, with ip tuntap")
	case queues < 2 || queues%2 != 0:
		o.fault("num_queues", fmt.Sprintf("%d is no even number: each pair has one for what comes and one for what goes", queues), "")
	case len(nic.FDs) > 0 && uint64(len(nic.FDs))*2 != queues:
		o.fault("fd", fmt.Sprintf("has %d descriptors for %d queues, of which each descriptor has two", len(nic.FDs), queues), "")
	}
	for _, fd := range nic.FDs {
		if fd <= 2 {
			o.fault("fd", fmt.Sprintf("%d is standard input, output or error", fd), "")
		}
	}
	if nic.MAC != "" && !mac().MatchString(nic.MAC) {
		o.wrong("mac", "an address as 02:00:00:01:01:01")
	}
	if nic.Pairs = int(queues / 2); nic.Pairs == 1 {
		nic.Pairs = 0
	}
	p.spec.Interfaces = append(p.spec.Interfaces, nic)
}

// tagMax is how long a share's name can be, in bytes (virtio 1.2, 5.11.4).
const tagMax = 36

func (p *parser) share(f flag, w word) {
	o := p.options(f, w, known("tag", "socket", "num_queues", "queue_size").but(notHandedOn, "id", "pci_segment", "pci_device_id"))
	s := vm.Share{Tag: o.need("tag"), Proto: "virtiofs", Socket: o.path("socket")}
	if len(s.Tag) > tagMax {
		o.wrong("tag", fmt.Sprintf("at most %d bytes", tagMax))
	}
	if q, size := o.number("num_queues", 1, 1<<16-1), o.number("queue_size", 1024, 1<<16-1); q != 1 || size != 1024 {
		o.fault("", "a share has one queue of 1024: another number is refused, "+notHandedOn, "leave num_queues= and queue_size= out")
	}
	p.spec.Shares = append(p.spec.Shares, s)
}

func (p *parser) vsock(f flag) {
	o := p.options(f, f.args[0], known("cid", "socket").but(notHandedOn, "id", "iommu", "pci_segment", "pci_device_id"))
	v := &vm.Vsock{CID: uint32(o.number("cid", 0, 1<<32-1)), Socket: o.path("socket")}
	if o.need("cid"); o.has("cid") && v.CID < 3 {
		o.wrong("cid", "3 or more: the others are not for guests")
	}
	p.spec.Vsock = v
}

func (p *parser) device(f flag, w word) {
	o := p.options(f, w, known("path").
		but("it is the number of a descriptor, which cloud-hypervisor does not inherit", "fd").
		but(notHandedOn, "id", "iommu", "pci_segment", "pci_device_id", "x_nv_gpudirect_clique", "x_exclude_mmap_bars"))
	p.spec.Devices = append(p.spec.Devices, o.path("path"))
}

// common are the keys that every PCI device has.
func common(names ...string) keys {
	return known(append(names, "id", "iommu", "pci_segment", "pci_device_id")...)
}

// pci puts what they say into a device.
func (o *options) pci(device map[string]any) map[string]any {
	if o.has("id") {
		device["id"] = o.text("id")
	}
	if o.toggle("iommu", false) {
		device["iommu"] = true
	}
	if n := o.number("pci_segment", 0, 1<<16-1); n != 0 {
		device["pci_segment"] = n
	}
	if o.has("pci_device_id") {
		device["pci_device_id"] = o.number("pci_device_id", 0, 1<<8-1)
	}
	return device
}

// push adds to a list of cloud-hypervisor's configuration.
func (p *parser) push(v any, key string) {
	list, _ := p.extra[key].([]any)
	p.extra[key] = append(list, v)
}

func (p *parser) balloon(f flag) {
	o := p.options(f, f.args[0], common("size", "deflate_on_oom", "free_page_reporting"))
	p.set(o.pci(map[string]any{
		"size": o.size("size", 0), "deflate_on_oom": o.toggle("deflate_on_oom", false), "free_page_reporting": o.toggle("free_page_reporting", false),
	}), "balloon")
}

func (p *parser) rng(f flag) {
	o := p.options(f, f.args[0], common("src"))
	d := o.pci(map[string]any{})
	if src := p.abs(o.text("src")); src != "" && src != defaultRNG {
		d["src"] = src
	}
	if len(d) > 0 {
		p.set(d, "rng")
	}
}

func (p *parser) rtc(f flag) {
	w := f.word
	w.text = ""
	if len(f.args) > 0 {
		w = f.args[0]
	}
	p.set(p.options(f, w, common()).pci(map[string]any{}), "rtc")
}

func (p *parser) pmem(f flag, w word) {
	o := p.options(f, w, common("file", "size", "discard_writes"))
	d := o.pci(map[string]any{"file": o.path("file"), "discard_writes": o.toggle("discard_writes", false)})
	if o.has("size") {
		d["size"] = o.size("size", 0)
	}
	p.push(d, "pmem")
}

func (p *parser) vdpa(f flag, w word) {
	o := p.options(f, w, common("path", "num_queues"))
	p.push(o.pci(map[string]any{"path": o.path("path"), "num_queues": o.number("num_queues", 1, 1<<16-1)}), "vdpa")
}

func (p *parser) tpm(f flag) {
	o := p.options(f, f.args[0], known("socket"))
	p.set(map[string]any{"socket": o.path("socket")}, "tpm")
}
