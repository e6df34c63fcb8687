// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

func full() *vm.Spec {
	return &vm.Spec{
		Name: "test-vm", CPUs: 2, Memory: 1 << 30,
		Boot:  vm.Boot{Kernel: "/a \"quoted\" path", Initrd: "/initrd", Cmdline: "console=ttyS0 <>&"},
		Disks: []vm.Disk{{Path: "/d.img", Format: "raw", Serial: "data"}, {Path: "/d.qcow2", Format: "qcow2", ReadOnly: true}},
		Guest: vm.Guest{Systemd: 257},
	}
}

// text is what a rope writes.
func text(t *testing.T, r secret.Rope) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := r.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestBody: what is sent is JSON, with the strings as they are and nothing else
// that a VM without credentials has not.
func TestBody(t *testing.T) {
	v, err := secret.Read(strings.NewReader("c2VjcmV0"), 100)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Wipe()
	oem := []secret.Rope{{{Text: "a \"b\" \\ \n\x01 ü"}}, {{Text: "NAME=\""}, {Secret: v}}}
	c := configOf(full(), tested, paths{serial: serialPath(5)})
	body, err := createBody(c, oem)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(text(t, body)), &got); err != nil {
		t.Fatalf("%v: %s", err, text(t, body))
	}
	platform, _ := got["platform"].(map[string]any)
	strs, _ := platform["oem_strings"].([]any)
	if len(strs) != 2 || strs[0] != "a \"b\" \\ \n\x01 ü" || strs[1] != `NAME="c2VjcmV0` {
		t.Errorf("strings %q", strs)
	}
	delete(got, "platform")
	with, _ := json.Marshal(got)
	body, err = createBody(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	var without map[string]any
	if err := json.Unmarshal([]byte(text(t, body)), &without); err != nil {
		t.Fatal(err)
	}
	if b, _ := json.Marshal(without); string(b) != string(with) {
		t.Errorf("with strings %s\nwithout %s", with, b)
	}
}

// TestRoom: a plan that is full to its last byte makes a body that is, too.
func TestRoom(t *testing.T) {
	spec := full()
	d := New(Options{})
	offers := d.Offers(spec, hypervisor.Info{Version: tested.String()})
	names := []string{"A", `Q"\\`, "B"}
	plan := func(n int) (delivery.Plan, *credential.Set, bool) {
		set := credential.NewSet()
		if err := set.AddStatic("TEXT", "a \"b\" \n ü"); err != nil {
			t.Fatal(err)
		}
		if err := set.AddOEMString(strings.Repeat("\x02", 20)); err != nil {
			t.Fatal(err)
		}
		for i, name := range names {
			size := 100
			if i == 0 {
				size = n
			}
			v, err := secret.Make(size, func(b []byte) (int, error) { return len(b), nil })
			if err != nil {
				t.Fatal(err)
			}
			if err := set.AddSecret("host-"+string(rune('a'+i)), name, v); err != nil {
				t.Fatal(err)
			}
		}
		p, refusals := delivery.Make(offers, delivery.Guest{Systemd: 257}, set.Metas())
		return p, set, len(refusals) == 0
	}
	low, high := 1, bodyMax
	for high-low > 1 {
		mid := (low + high) / 2
		_, set, ok := plan(mid)
		_ = set.Close()
		if ok {
			low = mid
		} else {
			high = mid
		}
	}
	p, set, _ := plan(low)
	defer set.Close()
	payload, err := p.Encode(set)
	if err != nil {
		t.Fatal(err)
	}
	defer payload.Close()
	body, err := createBody(configOf(spec, tested, widest(spec)), payload.Strings)
	if err != nil {
		t.Fatal(err)
	}
	// Base64 grows by four; the structure's own bytes and one comma are counted in
	// vain.
	if n := body.Len(); n > bodyMax || n < bodyMax-4-8 {
		t.Errorf("a full plan makes a body of %d bytes, %d are taken", n, bodyMax)
	}
}

func TestVersions(t *testing.T) {
	for line, want := range map[string]string{
		"cloud-hypervisor v53.0\n": "53.0.0", "cloud-hypervisor v53.0-dirty": "53.0.0", "cloud-hypervisor v39.0.1": "39.0.1",
		"cloud-hypervisor v53": "", "cloud-hypervisor": "", "QEMU emulator version 7.2": "", "cloud-hypervisor vx.y": "",
	} {
		v, err := parseVersion([]byte(line))
		if (err == nil) != (want != "") || err == nil && v.String() != want {
			t.Errorf("%q: %v, %v", line, v, err)
		}
	}
	if c := configOf(full(), version{50, 0, 0}, paths{}); c.Disks[0].ImageType != "" || c.Serial.Mode != "Off" {
		t.Errorf("v50: %+v", c)
	}
}
