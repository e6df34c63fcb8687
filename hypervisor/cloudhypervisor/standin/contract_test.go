// SPDX-License-Identifier: Apache-2.0

package standin_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// config is a VM's with these words for its guest. More is JSON that is added.
func config(words, more string) string {
	return `{"cpus":{"boot_vcpus":1,"max_vcpus":1},"memory":{"size":134217728},` +
		`"payload":{"kernel":"KERNEL","cmdline":"` + words + `"},` + plain + more + `}`
}

// about is a VM's without some of its parts, which more then has.
func about(more string) string {
	return `{"cpus":{"boot_vcpus":1,"max_vcpus":1},` + plain + `,` + more + `}`
}

const (
	plain    = `"rng":{"src":"/dev/urandom"},"serial":{"mode":"File","file":"SERIAL"},"console":{"mode":"Off"}`
	memory   = `"memory":{"size":134217728}`
	shared   = `"memory":{"size":134217728,"shared":true}`
	payload  = `"payload":{"kernel":"KERNEL","cmdline":"hang"}`
	enoent   = `"No such file or directory (os error 2)"]`
	noBoot   = `["Error from API","The VM could not boot",`
	noType   = `["Failed to deserialize JSON","`
	starting = "vmm:starting"
	booting  = "vm:booting"
	booted   = "vm:booted"
	shutdown = "vm:shutdown"
	deleted  = "vm:deleted"
	ended    = "vmm:shutdown"
)

// step is a request and its answer. A body of an answer that ends in "…" is how
// it begins.
type step struct {
	request string // "PUT vm.boot"
	body    string
	status  int
	answer  string
}

func ok(request string) step { return step{request: request, status: 204} }

func create(body string) step { return step{"PUT vm.create", body, 204, ""} }

func refuses(body, answer string) step { return step{"PUT vm.create", body, 400, noType + answer} }

// exchange is a process's life up to vmm.shutdown, and the events of all of it.
type exchange struct {
	name   string
	steps  []step
	events []string
}

func exchanges() []exchange {
	const (
		notThere   = `["Error from API","The VM info is not available","VM is not created"]`
		badRequest = `["Bad Request"]`
		notRunning = `"VM is not running"]`
	)
	boot := ok("PUT vm.boot")
	noKernel := step{"PUT vm.boot", "", 500, noBoot + `"Cannot open kernel file",` + enoent}
	return []exchange{
		{"nothing is there", []step{
			{"GET vmm.ping", "", 200, `{"build_version":"v53.0…`},
			{"GET vmm.ping", "{}", 200, `{"build_version":"v53.0…`},
			{"GET nothing", "", 404, `["Not Found"]`},
			{"GET vmm.ping?x", "", 404, `["Not Found"]`},
			{"PUT vmm.ping", "", 400, badRequest},
			{"PATCH vmm.ping", "", 400, badRequest},
			{"POST vmm.ping", "", 400, "{ \"error\": \"Invalid HTTP Method…"},
			{"GET vm.info", "", 404, notThere},
			{"PUT vm.info", "", 400, badRequest},
			{"GET vm.boot", "", 400, badRequest},
			{"PUT vm.power-button", "", 500, `["Error from API","Error triggering power button",` + notRunning},
			{"PUT vm.shutdown", "", 500, `["Error from API","The VM could not shutdown",` + notRunning},
			{"PUT vm.add-net", `{"id":"n"}`, 404, `["Error from API","The network device could not be added to the VM","VM is not created"]`},
			ok("PUT vm.delete"),
			{"PUT vm.boot", "", 404, noBoot + `"VM config is missing"]`},
		}, []string{starting, booting, ended}},
		{"bodies where none belongs, and none where one does", []step{
			{"PUT vm.boot", "{}", 400, badRequest},
			{"PUT vm.shutdown", "{}", 400, badRequest},
			{"PUT vm.power-button", "{}", 400, badRequest},
			{"PUT vm.add-net", "", 400, badRequest},
			{"PUT vm.create", "", 400, ""},
			{"GET vm.create", "", 400, badRequest},
		}, []string{starting, ended}},
		{"types", []step{
			refuses(`{`, "…"), refuses(`{} x`, "trailing characters…"),
			refuses("{\"platform\":{\"oem_strings\":[\"\xff\"]}}", "invalid unicode code point…"),
			refuses(`"x"`, `invalid type: string \"x\", expected struct VmConfig at line 1 column 3"]`),
			refuses(`null`, `invalid type: null, expected struct VmConfig at line 1 column 4"]`),
			refuses(`{"iommu":null}`, `invalid type: null, expected a boolean…`),
			refuses(`{"memory":{"size":"a-value"}}`, `invalid type: string \"a-value\", expected u64 at line 1 column 27"]`),
			refuses(`{"memory":{"size":-1}}`, `invalid value: integer`+" `-1`, expected u64 at line 1 column 20\"]"),
			refuses(`{"memory":{"size":1.5}}`, "invalid type: floating point `1.5`, expected u64…"),
			refuses(`{"cpus":{"boot_vcpus":1}}`, "missing field `max_vcpus` at line 1 column 24\"]"),
			refuses(`{"payload":{"kernel":5}}`, "invalid type: integer `5`, expected path string…"),
			refuses(`{"platform":{"oem_strings":"a-value"}}`, `invalid type: string \"a-value\", expected a sequence…`),
			refuses(`{"platform":{"oem_strings":["a",5]}}`, "invalid type: integer `5`, expected a string…"),
			refuses(`{"disks":{}}`, "invalid type: map, expected a sequence…"),
			refuses(`{"disks":[{"path":"/x","readonly":"no"}]}`, `invalid type: string \"no\", expected a boolean…`),
			refuses(`{"disks":[{"path":"/x","image_type":"raw"}]}`, "unknown variant `raw`, expected one of `FixedVhd`…"),
			refuses(`{"fs":[{"socket":"/x"}]}`, "missing field `tag`…"),
			refuses(`{"vsock":{"cid":3}}`, "missing field `socket`…"),
			refuses(`{"net":[{"mac":"zz"}]}`, "The provided MAC address is invalid: parsing of zz into a MAC address failed…"),
			refuses(`{"serial":{}}`, "missing field `mode`…"),
			refuses(`{"console":{"mode":"Nope"}}`, "unknown variant `Nope`, expected one of `Off`, `Pty`, `Tty`, `File`, `Socket`, `Null`…"),
			refuses(`{"iommu":false,"iommu":false}`, "duplicate field `iommu`…"),
			{"GET vm.info", "", 404, notThere},
		}, []string{starting, ended}},
		{"unknown keys, and a second creation", []step{
			create(config("hang", `,"strange":{"a":[{}]},"Iommu":5`)),
			{"PUT vm.create", config("hang", ""), 500, `["Error from API","The VM could not be created","VM is already created"]`},
		}, []string{starting, deleted, ended}},
		{"life of a VM", []step{
			create(config("hang", "")), boot,
			{"PUT vm.boot", "", 500, noBoot + `"VM is already created"]`},
			ok("PUT vm.power-button"), ok("PUT vm.shutdown"),
			{"PUT vm.shutdown", "", 500, `["Error from API","The VM could not shutdown",` + notRunning},
			boot, ok("PUT vm.delete"), ok("PUT vm.delete"),
			{"GET vm.info", "", 404, notThere},
		}, []string{starting, booting, booted, shutdown, booting, booted, shutdown, deleted, ended}},
		{"a running VM ends with its VMM", []step{create(config("hang", "")), boot}, []string{starting, booting, booted, shutdown, deleted, ended}},
		{"no kernel", []step{
			create(about(memory + `,"payload":{"kernel":"DIR/none"}`)), noKernel,
			{"PUT vm.boot", "", 500, noBoot + `"VM is already created"]`},
			ok("PUT vm.shutdown"), noKernel,
		}, []string{starting, booting, shutdown, booting, shutdown, deleted, ended}},
		{"a kernel that is none", []step{
			create(about(memory + `,"payload":{"kernel":"/etc/passwd"}`)),
			{"PUT vm.boot", "", 500, noBoot + `"Cannot load the kernel into memory","Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage","Kernel Loader: Invalid bzImage"]`},
		}, []string{starting, booting, shutdown, deleted, ended}},
		{"nothing to boot", []step{
			create(about(memory + `,"payload":{}`)),
			{"PUT vm.boot", "", 500, noBoot + `"Failed to validate config","Payload configuration is not bootable","No bootitem provided: neither firmware nor kernel"]`},
		}, []string{starting, booting, deleted, ended}},
		{"no initrd", []step{
			create(about(memory + `,"payload":{"kernel":"KERNEL","initramfs":"DIR/none"}`)),
			{"PUT vm.boot", "", 500, noBoot + `"Cannot open initramfs file",` + enoent},
		}, []string{starting, booting, deleted, ended}},
		{"no disk, and a second boot goes without it", []step{
			create(config("hang", `,"disks":[{"path":"/none","readonly":true}]`)),
			{"PUT vm.boot", "", 500, noBoot + `"Error from device manager","Cannot open disk path","I/O error (path=/none op=open)",` + enoent},
			boot,
		}, []string{starting, booting, booting, booted, shutdown, deleted, ended}},
		{"a share without shared memory", []step{
			create(config("hang", `,"fs":[{"tag":"a","socket":"DIR/none"}]`)),
			{"PUT vm.boot", "", 500, noBoot + `"Failed to validate config","Using vhost-user requires using shared memory or huge pages"]`},
		}, []string{starting, booting, deleted, ended}},
		{"a vsock's socket that cannot be, and a context that is not a guest's", []step{
			create(config("hang", `,"vsock":{"cid":3,"socket":"DIR/none/vsock"}`)),
			{"PUT vm.boot", "", 500, noBoot + `"Error from device manager","Cannot create virtio-vsock backend","Error binding to the host-side Unix socket",` + enoent},
			ok("PUT vm.delete"),
			create(config("hang", `,"vsock":{"cid":2,"socket":"DIR/vsock"}`)),
			{"PUT vm.boot", "", 500, noBoot + `"Failed to validate config","2 is a special VSOCK CID"]`},
		}, []string{starting, booting, deleted, booting, deleted, ended}},
		{"too few CPUs", []step{
			create(`{"cpus":{"boot_vcpus":2,"max_vcpus":1},` + memory + `,` + payload + `,` + plain + `}`),
			{"PUT vm.boot", "", 500, noBoot + `"Failed to validate config","Max CPUs (1) lower than boot CPUs (2)"]`},
		}, []string{starting, booting, deleted, ended}},
		{"no place for the console", []step{
			{"PUT vm.create", `{` + memory + `,` + payload + `,"serial":{"mode":"File","file":"DIR/none/x"},"console":{"mode":"Off"}}`, 500, `["Error from API","The VM could not be created","Error creating console devices","Error creating console device",` + enoent},
			{"GET vm.info", "", 200, `{…`},
		}, []string{starting, deleted, ended}},
		{"a failed creation is kept, and boots unconfined", []step{
			{"PUT vm.create", config("hang", `,"landlock_enable":true`), 500, `["Error from API","The VM could not be created","Failed to apply landlock config during vm_create","Error creating/adding/restricting ruleset","failed to add a rule: File descriptor in bad state (os error 77)","File descriptor in bad state (os error 77)"]`},
			boot,
		}, []string{starting, booting, booted, shutdown, deleted, ended}},
	}
}

func TestExchanges(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		for _, e := range exchanges() {
			t.Run(e.name, func(t *testing.T) {
				m := start(t, p, 1)
				for _, s := range e.steps {
					m.check(t, s)
				}
				m.finish(t, e.events...)
			})
		}
	})
}

func (m *machine) check(t *testing.T, s step) {
	t.Helper()
	method, path, _ := strings.Cut(s.request, " ")
	r := m.ask(t, method, path, s.body)
	want, begins := strings.CutSuffix(m.fill(s.answer), "…")
	if r.status != s.status || begins && !strings.HasPrefix(r.body, want) || !begins && r.body != want {
		t.Errorf("%s %s\nanswer %d %s\nwant   %d %s", s.request, s.body, r.status, r.body, s.status, s.answer)
	}
	if r.header.Get("Connection") != "keep-alive" {
		t.Errorf("%s: header %v", s.request, r.header)
	}
}

// vm.info gives everything back, the strings too, and defaults beside it.
func TestInfo(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 1)
		m.check(t, create(config("hang", `,"platform":{"oem_strings":["a,b","\"\u00e9\n"]},"strange":1,"disks":[{"path":"/x"}],"vsock":{"cid":3,"socket":"DIR/v"}`)))
		var info struct {
			State  string
			Config map[string]any
			Actual int `json:"memory_actual_size"`
		}
		r := m.ask(t, "GET", "vm.info", "")
		if err := json.Unmarshal([]byte(r.body), &info); err != nil || r.status != 200 {
			t.Fatal(err, r)
		}
		if info.State != "Created" || info.Actual != 128<<20 || info.Config["strange"] != nil {
			t.Errorf("vm.info: %s", r.body)
		}
		for path, want := range map[string]string{
			"platform.oem_strings": `[a,b "é` + "\n]", "memory.shared": "false", "memory.hotplug_method": "Acpi",
			"cpus.nested": "true", "serial.mode": "File", "serial.file": serialFile, "console.mode": "Off", "vsock.cid": "3",
			"landlock_enable": "false", "watchdog": "false", "payload.kernel": p.kernel, "payload.initramfs": "<nil>",
		} {
			var at any = info.Config
			for key := range strings.SplitSeq(path, ".") {
				inner, _ := at.(map[string]any)
				at = inner[key]
			}
			if got := fmt.Sprint(at); got != want {
				t.Errorf("%s is %s, want %s", path, got, want)
			}
		}
		m.finish(t, starting, deleted, ended)
	})
}

// vm.add-net takes descriptors in place of a tap's name, and looks at boot what
// they are.
func TestNetworkDescriptors(t *testing.T) {
	onBoth(t, func(t *testing.T, p program) {
		m := start(t, p, 1)
		m.check(t, create(config("hang", "")))
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		if r := m.ask(t, "PUT", "vm.add-net", `{"id":"n0","mac":"02:00:00:00:00:01"}`, null); r.status != 204 {
			t.Errorf("add-net: %+v", r)
		}
		const refused = `["Error from API","The network device could not be added to the VM","Failed to validate config",`
		if r := m.ask(t, "PUT", "vm.add-net", `{"id":"n0"}`, null); r.status != 500 || r.body != refused+`"Identifier n0 is not unique"]` {
			t.Errorf("the same name: %+v", r)
		}
		if r := m.ask(t, "PUT", "vm.add-net", `{"num_queues":4}`, null); r.status != 500 || r.body != refused+`"Number of queues (4) to virtio_net does not match the number of FDs (2)"]` {
			t.Errorf("too few descriptors: %+v", r)
		}
		m.check(t, step{"PUT vm.boot", "", 500, noBoot + `"Error from device manager","Cannot create virtio-net device","Using existing tap","Ioctl failed (2147767506)","Inappropriate ioctl for device (os error 25)"]`})
		m.finish(t, starting, booting, deleted, ended)
	})
}
