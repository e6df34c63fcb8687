// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// decoded is the body of vm.create as what it says.
func decoded(t *testing.T, spec *vm.Spec, v version, p paths, oem []secret.Rope) map[string]any {
	t.Helper()
	body, err := createBody(configOf(spec, v, p), oem)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(text(t, body)), &got); err != nil {
		t.Fatalf("%v: %s", err, text(t, body))
	}
	return got
}

// TestWholeSpec: every field of a specification is in the body.
func TestWholeSpec(t *testing.T) {
	s := full()
	s.MaxCPUs, s.Watchdog = 8, true
	s.Disks = []vm.Disk{{Path: "/a", Format: "vhd", Direct: true, Queues: 2}, {Path: "/b"}, {Path: "/c", Format: "vhdx", ReadOnly: true}}
	s.Shares = []vm.Share{{Tag: "store", Socket: "/run/theirs.sock"}, {Tag: "ours"}}
	s.Vsock = &vm.Vsock{CID: 7}
	s.Devices = []string{"/sys/bus/pci/devices/0000:01:00.0"}
	got := decoded(t, s, tested, paths{vsock: "/run/v.sock", shares: []string{"", "/run/fs1.sock"}}, nil)
	for path, want := range map[string]any{
		"cpus.boot_vcpus": 2.0, "cpus.max_vcpus": 8.0, "memory.shared": true, "watchdog": true,
		"disks.0.direct": true, "disks.0.num_queues": 2.0, "disks.0.image_type": "FixedVhd",
		"disks.1.direct": nil, "disks.1.num_queues": nil, "disks.1.image_type": nil,
		"disks.2.image_type": "Vhdx", "disks.2.readonly": true,
		"fs.0.tag": "store", "fs.0.socket": "/run/theirs.sock", "fs.0.num_queues": 1.0, "fs.0.queue_size": 1024.0,
		"fs.1.tag": "ours", "fs.1.socket": "/run/fs1.sock",
		"vsock.cid": 7.0, "vsock.socket": "/run/v.sock",
		"devices.0.path": s.Devices[0], "platform": nil, "payload.firmware": nil,
	} {
		if v := dig(got, path); v != want {
			t.Errorf("%s is %v, want %v", path, v, want)
		}
	}
	s.Shares, s.Vsock.Socket, s.Boot = nil, "/its/own", vm.Boot{Firmware: "/fw"}
	got = decoded(t, s, tested, paths{}, nil)
	for path, want := range map[string]any{
		"memory.shared": nil, "vsock.socket": "/its/own", "payload.firmware": "/fw", "payload.kernel": nil,
	} {
		if v := dig(got, path); v != want {
			t.Errorf("%s is %v, want %v", path, v, want)
		}
	}
}

// TestRoomForNames: what the strings may take is counted with names as long as
// those of a start can be.
func TestRoomForNames(t *testing.T) {
	s := full()
	without := stringsRoom(s, tested)
	s.Vsock = &vm.Vsock{CID: 3}
	s.Shares = []vm.Share{{Tag: "a"}}
	if n := without - stringsRoom(s, tested); n < 2*socketMax {
		t.Errorf("two sockets leave %d bytes less, their names alone take %d", n, 2*socketMax)
	}
}

// TestExtra: it is merged last, and what platform holds stands beside the strings.
func TestExtra(t *testing.T) {
	oem := []secret.Rope{{{Text: "one"}}}
	for extra, want := range map[string]map[string]any{
		`{"memory":{"hugepages":true,"hotplug_size":18446744073709551615}}`: {"memory.hugepages": true, "memory.size": 1073741824.0, "platform.oem_strings.0": "one"},
		`{"rng":{"src":"/dev/random"},"pvpanic":true}`:                      {"rng.src": "/dev/random", "pvpanic": true},
		`{"platform":{}}`:                    {"platform.oem_strings.0": "one"},
		`{"platform":{"system_uuid":"<u>"}}`: {"platform.oem_strings.0": "one", "platform.system_uuid": "<u>"},
		`{"memory":{"shared":false}}`:        {"memory.shared": false},
		`{"rng":null}`:                       {"rng": nil},
	} {
		s := full()
		s.Shares = []vm.Share{{Tag: "a", Socket: "/s"}}
		s.CloudHypervisor.Extra = []byte(extra)
		if ps := extraProblems(extra); len(ps) > 0 {
			t.Errorf("%s: %v", extra, ps)
		}
		got := decoded(t, s, tested, paths{}, oem)
		for path, w := range want {
			if v := dig(got, path); v != w {
				t.Errorf("%s: %s is %v, want %v", extra, path, v, w)
			}
		}
		// Without strings it is the same but for them.
		bare := decoded(t, s, tested, paths{}, nil)
		if p, ok := got["platform"].(map[string]any); ok {
			delete(p, "oem_strings")
			if bare["platform"] == nil {
				bare["platform"] = map[string]any{}
			}
		}
		if !reflect.DeepEqual(got, bare) {
			t.Errorf("%s: with strings %v, without %v", extra, got, bare)
		}
	}
	s := full()
	s.CloudHypervisor.Extra = []byte(`{"rng":null}`)
	if _, there := decoded(t, s, tested, paths{}, nil)["rng"]; there {
		t.Error("null takes nothing out")
	}
	s.CloudHypervisor.Extra = []byte(`{"memory":{"hotplug_size":18446744073709551615}}`)
	body, err := createBody(configOf(s, tested, paths{}), nil)
	if err != nil || !strings.Contains(text(t, body), "18446744073709551615") {
		t.Errorf("a number that no float holds: %v", err)
	}
}

func extraProblems(extra string) vm.Problems {
	c := hostcheck.New(&vm.Spec{})
	checkExtra(c, []byte(extra))
	return c.Problems()
}

// TestExtraRefused: what could carry or show a credential is refused by its name.
func TestExtraRefused(t *testing.T) {
	for extra, want := range map[string]string{
		`{"platform":{"oem_strings":["x"]}}`:                     "extra.platform.oem_strings: this is refused: it would carry",
		`{"platform":{"oem_strings":null}}`:                      "extra.platform.oem_strings",
		`{"platform":null}`:                                      "extra.platform: this must be a JSON object",
		`{"platform":{"tdx":true}}`:                              "confidential",
		`{"platform":{"iommufd_fd":5}}`:                          "descriptor",
		`{"platform":{"system_version":"a\u0000b"}}`:             "extra.platform.system_version",
		`{"platform":{"uuid":""}}`:                               "extra.platform.uuid",
		`{"payload":{"cmdline":"x"}}`:                            "extra.payload",
		`{"debug_console":{"mode":"Tty"}}`:                       "extra.debug_console",
		`{"serial":{"mode":"Tty"}}`:                              "extra.serial.mode",
		`{"console":{"mode":"File","file":"/x"}}`:                "extra.console.file",
		`{"serial":{"mode":"Socket","socket":"/x"}}`:             "extra.serial.socket",
		`{"pvmemcontrol":{}}`:                                    "extra.pvmemcontrol",
		`{"memory":{"zones":[{"id":"a","size":1,"file":"/x"}]}}`: "extra.memory.zones",
		`{"memory":7}`:                                           "extra.memory: this must be a JSON object",
		`{"cpus":{"boot_vcpus":9}}`:                              "extra.cpus.boot_vcpus",
		`{"user_devices":[{"socket":"/x"}]}`:                     "extra.user_devices",
		`{"generic_vhost_user":[]}`:                              "extra.generic_vhost_user",
		`{"gdb":true}`:                                           "extra.gdb",
		`{"disks":[{"vhost_user":true,"vhost_socket":"/x"}]}`:    "extra.disks",
		`{"net":[]}`:                                             "extra.net",
		`{"fs":[]}`:                                              "extra.fs",
		`{"landlock_enable":true}`:                               "extra.landlock_enable",
		`{"baloon":{"size":1}}`:                                  "extra.baloon",
		`{"rng":{"src":"io.systemd.credential:A=b"}}`:            "past the plan",
		`{"numa":[{"a":["io.systemd.credential.binary:A=b"]}]}`:  "past the plan",
		`[]`: "no JSON object", `{} {}`: "not one JSON object", `null`: "not one JSON object", `{`: "no JSON object",
	} {
		ps := extraProblems(extra)
		if len(ps.Fatal()) == 0 || !strings.Contains(ps.Error(), want) {
			t.Errorf("%s: %v, want %q", extra, ps, want)
		}
	}
	if ps := extraProblems(`{"baloon":{}}`); len(ps) != 1 || ps[0].Hint != `did you mean "balloon"?` {
		t.Errorf("hint: %+v", ps)
	}
	if ps := extraProblems(`{"memory":{"mergeable":true}}`); len(ps) != 1 || ps[0].Severity != vm.Warning || ps[0].Message != merged {
		t.Errorf("pages in common with another VM: %+v", ps)
	}
	for _, extra := range []string{"", `{}`, `{"memory":{"mergeable":false}}`, `{"console":{"mode":"Null"},"serial":{"mode":"Off"},"cpus":{"nested":false},"balloon":{"size":1}}`} {
		if ps := extraProblems(extra); len(ps) > 0 {
			t.Errorf("%s: %v", extra, ps)
		}
	}
}

// TestExtraOfAWrongType: the answer's words stay unsaid, so the hint says where to look.
func TestExtraOfAWrongType(t *testing.T) {
	onBoth(t, func(t *testing.T, path string) {
		spec := withDevices(t)
		spec.CloudHypervisor.Extra = []byte(`{"balloon":{"size":"hunter2"}}`)
		d := New(Options{Path: path})
		m, err := d.Start(t.Context(), launchOf(t, d, spec))
		if err == nil {
			_ = m.Kill()
			t.Fatal("it started")
		}
		var e *hypervisor.Error
		if !errors.As(err, &e) || !strings.Contains(e.Hint(), extraField) || strings.Contains(err.Error()+e.Hint(), "hunter2") {
			t.Errorf("%v (hint %q)", err, e.Hint())
		}
	})
}
