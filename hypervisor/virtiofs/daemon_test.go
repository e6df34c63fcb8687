// SPDX-License-Identifier: Apache-2.0

package virtiofs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/program"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

func TestParse(t *testing.T) {
	for line, want := range map[string]Daemon{
		"virtiofsd 1.14.0": {Version: program.Version{1, 14, 0}},
		"virtiofsd 1.13.2": {Version: program.Version{1, 13, 2}},
		"virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)": {Version: program.Version{7, 2, 22}, Legacy: true},
		"virtiofsd backend 1.3.0":                                 {Version: program.Version{1, 3, 0}},
	} {
		if got, err := parse("", []byte(line)); err != nil || got != want {
			t.Errorf("%q: %v, %v", line, got, err)
		}
	}
	for _, line := range []string{"", "virtiofsd", "virtiofsd x", "virtiofsd version", "bash 5.2"} {
		if got, err := parse("", []byte(line)); err == nil {
			t.Errorf("%q: %v", line, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, line := range []string{"virtiofsd 1.14.0", "virtiofsd version 7.2.22 (Debian)", "virtiofsd backend 1.3", "x"} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if d, err := parse("", line); err == nil && (d.Version == program.Version{} && !strings.Contains(string(line), "0.0")) {
			t.Errorf("%q is %v", line, d)
		}
	})
}

// fake is a program that says it is that version.
func fake(t *testing.T, version string) string {
	t.Helper()
	path := filepath.Join(open(t), executable)
	if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\necho '%s'\n", version), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProbe(t *testing.T) {
	path := fake(t, "virtiofsd 1.13.0")
	t.Setenv("PATH", filepath.Dir(path))
	if d, err := Probe(t.Context(), Options{}); err != nil || d.Path != path || d.String() != "virtiofsd 1.13.0" {
		t.Errorf("%v, %v", d, err)
	}
	_, err := Probe(t.Context(), Options{Path: fake(t, "virtiofsd 1.12.9")})
	if err == nil || !strings.Contains(err.Error(), "at least 1.13.0 is needed") || hintOf(err) != install {
		t.Errorf("%v (hint %q)", err, hintOf(err))
	}
	old := filepath.Join(open(t), executable)
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho 'setgroups() failed with error=1:Operation not permitted' >&2; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = Probe(t.Context(), Options{Path: old})
	if err == nil || !strings.Contains(err.Error(), "QEMU's old virtiofsd, which runs as root only") || hintOf(err) != install {
		t.Errorf("%v (hint %q)", err, hintOf(err))
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if d, err := Probe(t.Context(), Options{}); err == nil {
		t.Errorf("anybody can write %v", d)
	}
	t.Setenv("PATH", t.TempDir())
	d, err := Probe(t.Context(), Options{})
	if err == nil && !slices.Contains(elsewhere(), d.Path) || err != nil && hintOf(err) != install {
		t.Errorf("%v, %v (hint %q)", d, err, hintOf(err))
	}
}

func TestArguments(t *testing.T) {
	d := Daemon{Path: "/x"}
	id := &launch.Identity{User: "vmshare-x", UID: 990, GID: 991}
	got := strings.Join(d.arguments(vm.Share{ReadOnly: true}, "/s, t", id), " ")
	want := "--fd=3 --shared-dir=/s, t --sandbox=namespace --inode-file-handles=never --log-level=warn --readonly" +
		" --uid-map=:0:990:1: --gid-map=:0:991:1: --rlimit-nofile=0"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := d.arguments(vm.Share{}, "/s", id); slices.Contains(got, "--readonly") {
		t.Errorf("%q", got)
	}
	old := Daemon{Path: "/x", Legacy: true}
	if got := strings.Join(old.arguments(vm.Share{ReadOnly: true}, "/s", nil), " "); got != "--fd=3 -f -o source=/s -o modcaps=-mknod -o log_level=warn" {
		t.Errorf("%s", got)
	}
}

func TestCheck(t *testing.T) {
	sh := vm.Share{Tag: "t", Source: "/s"}
	served := vm.Share{Tag: "u", Source: "/s", Socket: "/run/x.sock"}
	if os.Geteuid() == 0 {
		sh.User = "nobody"
	}
	old := Options{Path: fake(t, "virtiofsd version 7.2.22 (Debian)")}
	for what, tc := range map[string]struct {
		shares []vm.Share
		o      Options
		want   string // of the only problem
	}{
		"none":        {nil, Options{Path: "/nonexistent"}, ""},
		"served":      {[]vm.Share{served}, Options{Path: "/nonexistent"}, ""},
		"supported":   {[]vm.Share{served, sh}, Options{Path: fake(t, "virtiofsd 1.14.0")}, ""},
		"no daemon":   {[]vm.Share{sh, sh}, Options{Path: "/nonexistent"}, "shares: no virtiofsd to start"},
		"an old one":  {[]vm.Share{served, sh}, old, "shares[1]: QEMU's old virtiofsd 7.2.22 runs as root only"},
		"not by root": {[]vm.Share{{Tag: "t", Source: "/s", User: "no-such-user"}}, old, ""},
	} {
		got := Check(&vm.Spec{Shares: tc.shares}, tc.o)
		if len(got) > 1 || (len(got) == 0) != (tc.want == "") || len(got) == 1 && (!strings.HasPrefix(got[0].Error(), tc.want) || got[0].Severity != vm.Error) {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func TestRefuses(t *testing.T) {
	old := Daemon{Path: "/x", Legacy: true, Version: program.Version{7, 2, 22}}
	id := &launch.Identity{User: "vmshare-x", UID: 990, GID: 991}
	err := old.refuses(vm.Share{Source: "/s"}, id)
	if err == nil || !strings.Contains(err.Error(), "QEMU's old virtiofsd 7.2.22 runs as root only") {
		t.Errorf("%v", err)
	}
	if err := (Daemon{}).refuses(vm.Share{Source: "/s,t"}, id); err != nil {
		t.Error(err)
	}
	if os.Geteuid() != 0 {
		return
	}
	if !strings.Contains(hintOf(err), "user: root") {
		t.Errorf("hint %q", hintOf(err))
	}
	if err := old.refuses(vm.Share{Source: "/s,t"}, nil); err == nil || !strings.Contains(err.Error(), "comma") {
		t.Errorf("%v", err)
	}
	if err := old.refuses(vm.Share{Source: "/s"}, nil); err != nil {
		t.Error(err)
	}
}
