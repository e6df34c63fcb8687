// SPDX-License-Identifier: Apache-2.0

package check

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/unit"
	"github.com/vmcred/vmcred/vm"
)

// spec is a VM with keys that have no source, and static names.
func spec(systemd int, keys []string, static ...string) *vm.Spec {
	s := &vm.Spec{Name: "test-vm", File: "test-vm.yaml", Unit: "vmcred@test-vm.service", Guest: vm.Guest{Systemd: systemd}}
	for _, k := range keys {
		s.Credentials = append(s.Credentials, vm.Credential{
			Host: k, Guest: credential.GuestName(k), Source: vm.Source{Kind: vm.SourceUnit},
		})
	}
	for _, kv := range static {
		k, v, _ := strings.Cut(kv, "=")
		s.Static = append(s.Static, vm.Static{Name: k, Value: v})
	}
	return s
}

func service(name, text string) *unit.Unit {
	as, _ := unit.Parse(name, []byte("[Service]\n"+text))
	return &unit.Unit{Name: name, Assignments: as}
}

// said shows problems as "severity field: message | hint".
func said(ps vm.Problems) []string {
	out := []string{}
	for _, p := range ps {
		out = append(out, p.Severity.String()+" "+p.Field+": "+p.Message+" | "+p.Hint)
	}
	return out
}

func want(t *testing.T, got vm.Problems, parts ...string) {
	t.Helper()
	lines := said(got)
	if len(lines) != len(parts) {
		t.Fatalf("%d problems, want %d:\n%s", len(lines), len(parts), strings.Join(lines, "\n"))
	}
	for i, part := range parts {
		for _, p := range strings.Split(part, " … ") {
			if !strings.Contains(lines[i], p) {
				t.Errorf("%s\nlacks %q", lines[i], p)
			}
		}
	}
}

// demo is the guest service that reads two settings and three secrets.
const demo = `LoadCredential=environment:ENVIRONMENT
LoadCredential=cluster:CLUSTER
LoadCredential=api-key:HOST_API_KEY
LoadCredential=db-password:HOST_DB_PASSWORD
LoadCredential=jwt-secret:HOST_JWT_SECRET
`

func keys() []string { return []string{"host-api-key", "host-db-password", "host-jwt-secret"} }

func TestRight(t *testing.T) {
	s := spec(252, keys(), "CLUSTER=example-host", "ENVIRONMENT=test")
	want(t, Spec(s, keys(), []*unit.Unit{service("demo.service", demo)}))
}

func TestUnitsNotGiven(t *testing.T) {
	want(t, Spec(spec(252, keys()), nil, nil), "note guest.units: guest units not checked")
	want(t, Spec(spec(252, nil), nil, nil))
}

func TestMisspeltInGuest(t *testing.T) {
	u := service("demo.service", strings.Replace(demo, "HOST_API_KEY", "HOST_APIKEY", 1))
	s := spec(252, keys(), "CLUSTER=x", "ENVIRONMENT=test")
	got := Spec(s, nil, []*unit.Unit{u})
	want(t, got, "error HOST_APIKEY: nobody delivers it (demo.service: LoadCredential=api-key:HOST_APIKEY) | did you mean HOST_API_KEY?")
	if p := got[0].Pos; p.File != "demo.service" || p.Line != 4 {
		t.Errorf("it stands at %v", p)
	}
}

func TestWithoutHostPrefix(t *testing.T) {
	s := spec(252, []string{"api-key"})
	want(t, Spec(s, nil, []*unit.Unit{service("demo.service", "LoadCredential=api-key:HOST_API_KEY")}),
		"error HOST_API_KEY: … did you mean API_KEY? … call that host-api-key, or add as: HOST_API_KEY")
	s = spec(252, []string{"host-api-key"})
	want(t, Spec(s, nil, []*unit.Unit{service("demo.service", "LoadCredential=api-key:host-api-key")}),
		"error host-api-key: nobody delivers it … did you mean HOST_API_KEY?")
	want(t, Spec(s, nil, []*unit.Unit{service("demo.service", "LoadCredential=HOST_API_KEI")}),
		"warning HOST_API_KEI: nobody delivers it … did you mean HOST_API_KEY?")
}

func TestLooseEnds(t *testing.T) {
	s := spec(252, []string{"host-a", "host-spare"}, "vmm.notify_socket=vsock:2:1", "MODE=x")
	u := service("demo.service", "LoadCredential=a:HOST_A\nLoadCredential=q:QUITE_OTHER\nLoadCredential=h:/etc/host\n"+
		"LoadCredential=d:HAS_DEFAULT\nSetCredential=d:x\nLoadCredential=passwd.hashed-password.root\nImportCredential=OPTIONAL\n")
	want(t, Spec(s, nil, []*unit.Unit{u}),
		"warning QUITE_OTHER: nobody delivers it … /etc/credstore",
		"warning credentials.host-spare: no unit of the guest asks for HOST_SPARE",
		"warning static.MODE: no unit of the guest asks for MODE")
}

func TestImport(t *testing.T) {
	u := []*unit.Unit{service("demo.service", "ImportCredential=HOST_*")}
	want(t, Spec(spec(254, keys()), nil, u))
	want(t, Spec(spec(252, []string{"host-a"}), nil, u), "warning HOST_*: … systemd 252 does not know this; 254")
	r := []*unit.Unit{service("demo.service", "ImportCredential=HOST_*:app.")}
	want(t, Spec(spec(254, []string{"host-a"}), nil, r), "257 is the first")
	want(t, Spec(spec(257, []string{"host-a"}), nil, r))
	e := []*unit.Unit{service("demo.service", "LoadCredentialEncrypted=a:HOST_A")}
	want(t, Spec(spec(257, []string{"host-a"}), nil, e), "expects an encrypted credential")
	i := []*unit.Unit{service("demo@.service", "LoadCredential=a:HOST_%i")}
	want(t, Spec(spec(257, []string{"host-a"}), nil, i))
}

func TestSources(t *testing.T) {
	s := spec(252, []string{"host-api-key", "host-db"})
	got := Spec(s, []string{"host-apikey", "other"}, []*unit.Unit{service("d.service", "LoadCredential=a:HOST_API_KEY\nLoadCredential=b:HOST_DB")})
	want(t, got,
		"error credentials.host-api-key: no source has it … did you mean host-apikey?",
		"error credentials.host-db: no source has it … add LoadCredential=host-db:/path",
		"warning credentials: other is there, but not declared")
	s.Credentials[0].Source.Kind, s.Credentials[1].Source.Kind = vm.SourceFile, vm.SourceFile
	want(t, Spec(s, []string{}, nil), "note guest.units")
}

func TestUpperCase(t *testing.T) {
	s := spec(252, []string{"HOST_API_KEY"})
	want(t, Spec(s, nil, nil), "warning credentials.HOST_API_KEY: … did you mean host-api-key?", "note")
	want(t, Spec(s, []string{"HOST_API_KEY"}, nil), "note")
	want(t, Spec(s, []string{"host-api-key"}, nil), "error credentials.HOST_API_KEY: no source has it … did you mean host-api-key?", "warning", "note")
}

// TestSecretLike: the values are random, made for this test.
func TestSecretLike(t *testing.T) {
	for _, kv := range []string{
		"A=q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=", "A=5f2b8c1e9d0a4f7b6c3e2d1a0b9c8d7e", "DB_PASSWORD=x7", "API_KEY=abc",
		"token=abcdef", "A=ghp_0123456789abcdefghij", "A=AGE-SECRET-KEY-1QQQ", "A=-----BEGIN OPENSSH PRIVATE KEY-----\nx", "PUBLIC_ID=AKIAABCDEFGHIJKLMNOP",
		"passwd.hashed-password.root=$y$j9T$abc$def", "DSN=postgres://u:p@db/x", "A=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
	} {
		s := spec(252, nil, kv)
		got := Spec(s, nil, []*unit.Unit{service("d.service", "LoadCredential=a:"+s.Static[0].Name)})
		want(t, got, "warning static. … this looks like a secret: … credentials:")
		if strings.Contains(strings.Join(said(got), ""), s.Static[0].Value) && len(s.Static[0].Value) > 3 {
			t.Errorf("%s: the value is shown", s.Static[0].Name)
		}
	}
	for _, kv := range []string{
		"ENVIRONMENT=test", "CLUSTER=example-host", "REGION=eu-central-1", "TOKEN_TTL=3600s", "KEY_FILE=/run/secrets/x", "PASSWORD_FILE=/x",
		"A=", "PUBLIC_KEY=age1qqqqqqqqqqqqqqqqq", "ssh.authorized_keys.root=ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ x@y", "KEYBOARD=de",
		"GIT_COMMIT=5f2b8c1e9d0a4f7b6c3e2d1a0b9c8d7e5f2b8c1e", "A=sha256:5f2b8c1e9d0a4f7b6c3e2d1a0b9c8d7e", "URL=https://example.org/a/b?c=d",
		"A=my-production-cluster-in-frankfurt-number-two", "MOTD=Welcome to the machine that never sleeps, 24 hours a day.",
		"MACHINE_ID=5f2b8c1e9d0a4f7b6c3e2d1a0b9c8d7e", "A=00000000000000000000000000000000", "A=/nix/store/5f2b8c1e9d0a4f7b6c3e2d1a0b9c8d7e-X1",
	} {
		name, value, _ := strings.Cut(kv, "=")
		if why := secretLike(name, value); why != "" {
			t.Errorf("%s: %s", kv, why)
		}
	}
}

func TestCmdlineAndOEM(t *testing.T) {
	s := spec(252, nil)
	s.Boot.Cmdline = "console=ttyS0 systemd.set_credential=A:hunter2 quiet"
	s.OEMStrings = []string{"io.systemd.credential:DB_PASSWORD=hunter2", "io.systemd.credential:B=x", "asset tag"}
	got := Spec(s, nil, []*unit.Unit{})
	want(t, got, "warning oem-strings[0]: this looks like a secret", "warning boot.cmdline: the credential A is",
		"no unit of the guest asks for B", "no unit of the guest asks for DB_PASSWORD")
	if strings.Contains(strings.Join(said(got), ""), "hunter2") {
		t.Error("the value is shown")
	}
}

func TestFamiliesSorted(t *testing.T) {
	if diff := cmp.Diff(true, systemdReads("vmm.notify_socket") && systemdReads("agetty.x") && systemdReads("network.dns")); diff != "" {
		t.Error(diff)
	}
	for i, f := range families()[1:] {
		if families()[i] >= f {
			t.Errorf("%s is out of order", f)
		}
	}
	if systemdReads("vmm") || systemdReads("app.name") {
		t.Error("a name of the user's is taken for systemd's")
	}
}
