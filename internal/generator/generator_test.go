// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/unit"
)

const (
	least  = "version: 1\nhypervisor: qemu\nboot: {kernel: /k}\n"
	shares = "shares: [{tag: a, source: /srv/a}]\n"
)

// world is one run of the generator.
type world struct {
	vms, out string
	log      bytes.Buffer
	probes   int
	probeErr error
}

func (w *world) probe(context.Context) (unit.Virtiofsd, error) {
	w.probes++
	return unit.Virtiofsd{Path: "/usr/libexec/virtiofsd"}, w.probeErr
}

// generate runs it on these files, by name.
func (w *world) generate(t *testing.T, files map[string]string) error {
	t.Helper()
	w.vms, w.out = filepath.Join(t.TempDir(), "vms"), t.TempDir()
	if err := os.Mkdir(w.vms, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(w.vms, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Run(context.Background(), Options{VMs: w.vms, Out: w.out, Units: "/units", Log: &w.log, Probe: w.probe})
}

// made lists what was generated, with the target of each link.
func (w *world) made(t *testing.T) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(w.out, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(w.out, path)
		if to, rerr := os.Readlink(path); rerr == nil {
			name += " -> " + to
		}
		all = append(all, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func (w *world) want(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, w.made(t)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func (w *world) read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.out, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const (
	target  = "multi-user.target.wants/vmcred.target -> /units/vmcred.target"
	dropIn  = "vmcred@%s.service.d/10-vmcred.conf"
	wanted  = "vmcred.target.wants/vmcred@%s.service -> /units/vmcred@.service"
	refused = "exit 78"
)

func TestEveryVM(t *testing.T) {
	w := &world{}
	if err := w.generate(t, map[string]string{
		"a.yaml": least + "autostart: true\ncredentials:\n  host-x: {file: /run/secrets/x}\n",
		"b.json": `{"version": 1, "hypervisor": "qemu", "boot": {"kernel": "/k"}}`,
		"c.yaml": least + shares, "d.yaml": least + shares,
		"e.yaml": least + "unit: microvm@e.service\nautostart: true\n",
		"notes":  "no VM",
	}); err != nil {
		t.Fatal(err)
	}
	w.want(t, target,
		fmt.Sprintf(dropIn, "a"), fmt.Sprintf(wanted, "a"), fmt.Sprintf(dropIn, "b"),
		fmt.Sprintf(dropIn, "c"), "vmcred-share-c-a.socket", "vmcred-share-c-a.service",
		fmt.Sprintf(dropIn, "d"), "vmcred-share-d-a.socket", "vmcred-share-d-a.service",
		"microvm@e.service.d/10-vmcred.conf", "vmcred.target.wants/microvm@e.service -> /units/microvm@.service",
	)
	if w.log.Len() > 0 || w.probes != 1 {
		t.Errorf("it asked %d times for the daemon and said %q", w.probes, &w.log)
	}
	spec, _ := config.Load(filepath.Join(w.vms, "a.yaml"))
	text, err := unit.DropIn(spec)
	if got := w.read(t, fmt.Sprintf(dropIn, "a")); err != nil || got != string(text) {
		t.Errorf("%v: it differs from what vmcred units prints:\n%s", err, got)
	}
}

// TestBroken: whatever is wrong with one VM, the others have theirs, and its own unit
// says what it is.
func TestBroken(t *testing.T) {
	long := "credentials:\n  host-" + strings.Repeat("x", 80) + ": {file: /run/secrets/x}\n"
	outside := "credentials:\n  ok: {file: /run/secrets/x}\n  no: {file: /etc/shadow}\n"
	broken := map[string]string{"bad.yaml": least + "credentials: {x: {file: /run/secrets/x}}\n", "../vmcred.yaml": "version: 1\nsorces: [/x]\n"}
	for name, c := range map[string]struct {
		files map[string]string
		why   string
	}{
		"syntax":          {map[string]string{"bad.yaml": "version: [\n"}, "bad.yaml:"},
		"a key":           {map[string]string{"bad.yaml": least + "memry: 1GiB\n"}, "memry"},
		"nothing in it":   {map[string]string{"bad.yaml": ""}, "bad.yaml"},
		"two files":       {map[string]string{"bad.yaml": least, "bad.json": "{}"}, "has two files"},
		"no line for it":  {map[string]string{"bad.yaml": least + long}, "bad.yaml:5:3: credentials.host-xxx"},
		"no line, why":    {map[string]string{"bad.yaml": least + long}, "systemd takes 83"},
		"another's unit":  {map[string]string{"bad.yaml": least + "unit: vmcred@good.service\n"}, "is the unit of the VM good"},
		"a file's place":  {map[string]string{"bad.yaml": least + outside}, "bad.yaml:6:3: credentials.no.file: /etc/shadow is in none"},
		"foreign, too":    {map[string]string{"bad.yaml": least + outside + "unit: x.service\n"}, "/etc/shadow is in none"},
		"the host's file": {broken, "vmcred.yaml:2:1: sorces: there is no such key"},
		"one unit twice":  {map[string]string{"bad.yaml": least + "unit: x.service\n", "aa.yaml": least + "unit: x.service\n"}, "is the unit of the VM aa"},
		"a control":       {map[string]string{"bad.yaml": least + "\"\\e[31m%i\": 1\n"}, "bad.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{}
			c.files["good.yaml"] = least
			if err := w.generate(t, c.files); err != nil {
				t.Fatal(err)
			}
			want := []string{target, fmt.Sprintf(dropIn, "good"), fmt.Sprintf(dropIn, "bad"), fmt.Sprintf(wanted, "bad")}
			if c.files["aa.yaml"] != "" {
				want = append(want, "x.service.d/10-vmcred.conf")
			}
			w.want(t, want...)
			text := w.read(t, fmt.Sprintf(dropIn, "bad"))
			if !strings.Contains(text, c.why) || !strings.Contains(text, refused) || strings.ContainsAny(text, "\x1b") {
				t.Errorf("no %q in\n%s", c.why, text)
			}
			if !strings.Contains(w.log.String(), "the VM bad is refused: ") || !strings.Contains(w.log.String(), c.why) {
				t.Errorf("no %q in the log: %s", c.why, &w.log)
			}
			if _, problems := unit.Parse("x", []byte(text)); len(problems) > 0 {
				t.Error(problems)
			}
			if strings.Contains(w.read(t, fmt.Sprintf(dropIn, "good")), refused) {
				t.Error("the other VM is refused, too")
			}
		})
	}
}

// TestHostFile: what the host's file says counts for every VM's, and where it wants the
// log the broker may write.
func TestHostFile(t *testing.T) {
	w := &world{}
	if err := w.generate(t, map[string]string{
		"../vmcred.yaml": "version: 1\naudit: /srv/audit/vmcred.log\nsources: [/srv/secrets]\n",
		"good.yaml":      least + "credentials: {x: {file: /srv/secrets/x}}\n",
		"bad.yaml":       least + "credentials: {x: {file: /run/secrets/x}}\n",
	}); err != nil {
		t.Fatal(err)
	}
	w.want(t, target, "vmcred-broker.service.d/10-vmcred.conf", fmt.Sprintf(dropIn, "good"), fmt.Sprintf(dropIn, "bad"), fmt.Sprintf(wanted, "bad"))
	if text := w.read(t, "vmcred-broker.service.d/10-vmcred.conf"); !strings.Contains(text, "\nReadWritePaths=-/srv/audit\n") {
		t.Error(text)
	}
	if text := w.read(t, fmt.Sprintf(dropIn, "good")); !strings.Contains(text, "\nLoadCredential=x:/srv/secrets/x\n") {
		t.Error(text)
	}
}

func TestNoDaemon(t *testing.T) {
	w := &world{probeErr: errors.New("there is no virtiofsd")}
	if err := w.generate(t, map[string]string{"good.yaml": least, "bad.yaml": least + shares}); err != nil {
		t.Fatal(err)
	}
	w.want(t, target, fmt.Sprintf(dropIn, "good"), fmt.Sprintf(dropIn, "bad"), fmt.Sprintf(wanted, "bad"))
	if text := w.read(t, fmt.Sprintf(dropIn, "bad")); !strings.Contains(text, "bad.yaml: shares: there is no virtiofsd") {
		t.Error(text)
	}
}

// TestSharePlace: somebody else's directory is not shared with root's rights.
func TestSharePlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, whose rights a share may have")
	}
	theirs := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(theirs, "x"), 0o755), os.Chown(theirs, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	w := &world{}
	if err := w.generate(t, map[string]string{"bad.yaml": least + "shares: [{tag: a, user: root, source: " + theirs + "/x}]\n"}); err != nil {
		t.Fatal(err)
	}
	w.want(t, target, fmt.Sprintf(dropIn, "bad"), fmt.Sprintf(wanted, "bad"))
	if text := w.read(t, fmt.Sprintf(dropIn, "bad")); !strings.Contains(text, "shares[0].source: who changes it") {
		t.Error(text)
	}
}

// A file that names no VM has no unit that could say so.
func TestNoName(t *testing.T) {
	w := &world{}
	if err := w.generate(t, map[string]string{"Bad.yaml": least, "x.yml": least}); err != nil {
		t.Fatal(err)
	}
	w.want(t)
	if got := w.log.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "Bad.yaml is left out") {
		t.Errorf("the log is %q", got)
	}
}

func TestManyReasons(t *testing.T) {
	w := &world{}
	text := least
	for i := range 50 {
		text += fmt.Sprintf("key%d: 1\n", i)
	}
	if err := w.generate(t, map[string]string{"bad.yaml": text}); err != nil {
		t.Fatal(err)
	}
	got := w.read(t, fmt.Sprintf(dropIn, "bad"))
	if len(got) > 16<<10 || !strings.Contains(got, `"and more: vmcred check bad"`) {
		t.Errorf("%d bytes: %s", len(got), got)
	}
}

// TestNothingToDo: a host without VMs, and a directory that cannot be written.
func TestNothingToDo(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	if err := Run(context.Background(), Options{VMs: none, Out: none}); err != nil {
		t.Error(err)
	}
	w := &world{}
	if err := w.generate(t, map[string]string{"a.yaml": least}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.vms, "a.yaml")
	if err := Run(context.Background(), Options{VMs: w.vms, Out: file, Log: &w.log}); err == nil {
		t.Error("it did not see that nothing could be written")
	}
}

func TestTemplates(t *testing.T) {
	for argv0, want := range map[string]string{
		"/usr/local/lib/systemd/system-generators/" + Name: "/usr/local/lib/systemd/system",
		"/etc/systemd/system-generators/" + Name:           "/etc/systemd/system",
		"./" + Name:                                        "/usr/lib/systemd/system",
		"/opt/x/" + Name:                                   "/usr/lib/systemd/system",
	} {
		if got := templates(argv0); got != want {
			t.Errorf("%s: %s, want %s", argv0, got, want)
		}
	}
}

// TestLines: one write, one record, whatever is written.
func TestLines(t *testing.T) {
	var out bytes.Buffer
	l := &lines{&out, "<4>x[1]: "}
	if n, err := fmt.Fprintf(l, "a %d\n", 1); n != 4 || err != nil || out.String() != "<4>x[1]: a 1\n" {
		t.Errorf("%d, %v, %q", n, err, &out)
	}
}
