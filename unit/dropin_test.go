// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/vmcred/vmcred/vm"
)

func spec(creds ...vm.Credential) *vm.Spec {
	return &vm.Spec{Name: "test-vm", Unit: "vmcred@test-vm.service", StopTimeout: 15 * time.Second, Credentials: creds}
}

func TestDropIn(t *testing.T) {
	s := spec(
		vm.Credential{Host: "host-api-key", Source: vm.Source{Kind: vm.SourceVar, Path: "g/f"}},
		vm.Credential{Host: "host-db-password", Source: vm.Source{Kind: vm.SourceFile, Path: "/run/secrets/db 100%"}},
		vm.Credential{Host: "host-jwt-secret", Source: vm.Source{Kind: vm.SourceUnit}},
		vm.Credential{Host: "host-license", Source: vm.Source{Kind: vm.SourceEncrypted, Path: "/etc/credstore.encrypted/license"}},
	)
	s.StopTimeout = 20 * time.Second
	s.Console = vm.Console{Mode: vm.ConsoleFile, Path: "/var/log/vms/test-vm.log"}
	s.Disks = []vm.Disk{
		{Path: "/var/lib/vmcred/images/a.img"},
		{Path: "/srv/b.img", ReadOnly: true},
		{Path: `/srv/my "disk" 50%.img`},
		{Path: "/dev/vg/lv"},
		{Path: "/dev/sr0", ReadOnly: true},
	}
	got, err := DropIn(s)
	if err != nil {
		t.Fatal(err)
	}
	want := `# The secrets of the VM test-vm, as its file names them. Where no generator writes this:
#   mkdir -p /etc/systemd/system/vmcred@test-vm.service.d
#   vmcred units test-vm > /etc/systemd/system/vmcred@test-vm.service.d/vmcred.conf
#   systemctl daemon-reload

[Service]
# host-api-key is g/f of the host's vars: the runner asks the broker for it.
LoadCredential=host-db-password:/run/secrets/db 100%%
# host-jwt-secret has no source in the VM's file. Give it one, here or in another drop-in:
#LoadCredential=host-jwt-secret:/path/to/its/file
LoadCredentialEncrypted=host-license:/etc/credstore.encrypted/license

# What the VM writes to, and its devices.
ReadWritePaths="-/srv/my \"disk\" 50%%.img"
DeviceAllow=/dev/vg/lv rw
DeviceAllow=/dev/sr0 r
ReadWritePaths=-/var/log/vms

# Longer than the VM's stop-timeout, 20s.
TimeoutStopSec=50
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestDropInForeign: a unit that is not ours has the values of the store from the
// broker's socket, with the list of them.
func TestDropInForeign(t *testing.T) {
	s := spec(
		vm.Credential{Host: "host-api-key", Source: vm.Source{Kind: vm.SourceVar, Path: "g/f"}},
		vm.Credential{Host: "host-db-password", Source: vm.Source{Kind: vm.SourceFile, Path: "/run/secrets/db"}},
	)
	s.Unit = "microvm@test-vm.service"
	got, err := DropIn(s)
	if err != nil {
		t.Fatal(err)
	}
	const want = `
[Service]
# g/f of the host's vars:
LoadCredential=host-api-key:/run/vmcred/broker.sock
LoadCredential=host-db-password:/run/secrets/db
# What came from the broker, to be compared with: vmcred run --expect-transfer-list does.
LoadCredential=vmcred.transfer-list:/run/vmcred/broker.sock

[Unit]
Wants=vmcred-broker.socket
After=vmcred-broker.socket
`
	if _, after, _ := strings.Cut(string(got), "daemon-reload\n"); after != want {
		t.Error(cmp.Diff(want, after))
	}
	s.Credentials = s.Credentials[1:] // no var:, no broker
	if got, err := DropIn(s); err != nil || strings.Contains(string(got), "broker") {
		t.Errorf("%v\n%s", err, got)
	}
}

// TestDropInOwnVar: what the runner asks for has no line, and so no limit of a line's.
func TestDropInOwnVar(t *testing.T) {
	long := strings.Repeat("n", 200)
	got, err := DropIn(spec(vm.Credential{Host: long, Source: vm.Source{Kind: vm.SourceVar, Path: "g/f"}}))
	if err != nil || !strings.Contains(string(got), "# "+long+" is g/f") || strings.Contains(string(got), "LoadCredential") {
		t.Errorf("%v\n%s", err, got)
	}
}

// TestDropInLongUnit: the list's name has to fit behind the unit's, too.
func TestDropInLongUnit(t *testing.T) {
	s := spec(vm.Credential{Host: "a", Source: vm.Source{Kind: vm.SourceVar, Path: "g/f"}})
	s.Unit = strings.Repeat("u", 63-len(".service")) + ".service"
	if _, err := DropIn(s); err != nil {
		t.Error(err)
	}
	s.Unit = "uu" + s.Unit
	_, err := DropIn(s)
	var d *DropInError
	if !errors.As(err, &d) || !strings.Contains(d.Message, "are 85 bytes together, and systemd takes 83") || d.Hint() != "shorten the unit's name by 2 characters" {
		t.Errorf("%v", err)
	}
}

func TestDropInRefuses(t *testing.T) {
	file := func(host, path string) vm.Credential {
		return vm.Credential{Host: host, Source: vm.Source{Kind: vm.SourceFile, Path: path}}
	}
	for _, c := range []struct {
		cred vm.Credential
		want string
	}{
		{file("a", "/x "), "ends in a space"},
		{file("a", `/x\`), "ends in a backslash"},
		{file("a", "/x\ny"), "control characters"},
		{file("a", "/x/../y"), `has "//"`},
		{file("a", "x"), "not absolute"},
		{file("a:b", "/x"), "a:b"},
		{file(strings.Repeat("n", 62), "/x"), "84 bytes together, and systemd takes 83"},
		{vm.Credential{Host: strings.Repeat("n", 62), Source: vm.Source{Kind: vm.SourceUnit}}, "84 bytes together"},
		{vm.Credential{Host: strings.Repeat("n", 62), Source: vm.Source{Kind: vm.SourceEncrypted, Path: "/x"}}, "84 bytes together"},
	} {
		out, err := DropIn(spec(c.cred))
		if out != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %q, %v; want %q", c.cred, out, err, c.want)
		}
	}
	if _, err := DropIn(spec(file(strings.Repeat("n", 61), "/x"))); err != nil {
		t.Errorf("83 bytes: %v", err)
	}
}

// TestDropInRoundTrip: what a drop-in says is what systemd's rules read back.
func TestDropInRoundTrip(t *testing.T) {
	name := rapid.StringMatching(`[ -.0-9;-~]{1,40}`).Filter(func(s string) bool { return s != "." && s != ".." })
	path := rapid.StringMatching(`(/[ !-.0-~äß%\\:"']{1,12}){1,3}`)
	rapid.Check(t, func(t *rapid.T) {
		kinds := []vm.SourceKind{vm.SourceFile, vm.SourceEncrypted, vm.SourceUnit, vm.SourceVar}
		foreign := rapid.Bool().Draw(t, "foreign")
		var creds []vm.Credential
		want := map[string]string{}
		for _, host := range rapid.SliceOfNDistinct(name, 0, 6, rapid.ID[string]).Draw(t, "names") {
			c := vm.Credential{Host: host, Source: vm.Source{Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Path: path.Draw(t, "path")}}
			creds = append(creds, c)
			switch c.Source.Kind {
			case vm.SourceFile:
				want[host] = "LoadCredential " + c.Source.Path
			case vm.SourceEncrypted:
				want[host] = "LoadCredentialEncrypted " + c.Source.Path
			case vm.SourceVar:
				if foreign {
					want[host] = "LoadCredential /run/vmcred/broker.sock"
					want["vmcred.transfer-list"] = want[host]
				}
			}
		}
		s := spec(creds...)
		if foreign {
			s.Unit = "x.service"
		}
		text, err := DropIn(s)
		if err != nil {
			return // refused is fine; wrong is not
		}
		as, problems := Parse("x", text)
		if len(problems) > 0 {
			t.Fatalf("%s\n%v", text, problems)
		}
		got := map[string]string{}
		for _, r := range Requests(s.Unit, as) {
			if r.Dynamic {
				t.Fatalf("a specifier is left: %+v\n%s", r, text)
			}
			got[r.ID] = r.Setting + " " + r.Path
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s\n%s", text, diff)
		}
	})
}
