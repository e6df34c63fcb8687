// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// token is a fresh value as the VM's secrets are: base64 of 32 random bytes.
// With a quote in it, it also has a JSON form of its own.
func token() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}

func search(t *testing.T, v string, meant ...Meant) *Search {
	t.Helper()
	return New(needles(t, []byte(v)), meant...)
}

// want fails unless a finding has this kind and form, and checks that no
// report ever holds the value.
func want(t *testing.T, s *Search, v string, kind Kind, form string) Finding {
	t.Helper()
	r := s.Report()
	text := reportText(t, r)
	if strings.Contains(text, v) {
		t.Error("the report holds the value")
	}
	for _, f := range append(r.Findings, r.Meant...) {
		if f.Place.Kind == kind && f.Form == form {
			return f
		}
	}
	t.Errorf("no %s form found in %s:\n%s", form, kind, text)
	return Finding{}
}

func reportText(t *testing.T, r *Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	b.Write(j)
	return b.String()
}

func none(t *testing.T, s *Search) {
	t.Helper()
	if r := s.Report(); r.Places != 0 || len(r.Findings) != 0 {
		t.Errorf("found something:\n%s", reportText(t, r))
	}
}

// child starts a program that lives until the test ends. It is ready when it
// has printed a line.
func child(t *testing.T, env []string, argv ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = append(env, "PATH="+os.Getenv("PATH"))
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = c.Process.Kill(); _ = c.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return c
}

const waits = "echo; read -r line"

func TestProcesses(t *testing.T) {
	ctx := context.Background()
	t.Run("argv", func(t *testing.T) {
		v := token()
		child(t, nil, "sh", "-c", waits, "x", "--platform", "oem_strings=[io.systemd.credential:A="+v+"]")
		s := search(t, v)
		if err := s.Processes(ctx); err != nil {
			t.Fatal(err)
		}
		if f := want(t, s, v, Argv, "plain"); f.Place.Detail != "argument 5" || f.Place.PID == 0 || f.Place.Exe == "" {
			t.Errorf("%+v", f)
		}
		if got := s.Report().Searched; got.Processes < 2 || got.Threads < got.Processes {
			t.Errorf("searched %+v", got)
		}
	})
	t.Run("environ in hex", func(t *testing.T) {
		v := token()
		child(t, []string{"A=1", "TOKEN=x" + hex.EncodeToString([]byte(v))}, "sh", "-c", waits)
		s := search(t, v)
		if err := s.Processes(ctx); err != nil {
			t.Fatal(err)
		}
		if f := want(t, s, v, Environ, "hex"); f.Place.Detail != "variable TOKEN" {
			t.Errorf("%+v", f)
		}
	})
	t.Run("comm, cut by the kernel", func(t *testing.T) {
		v, dir := token(), t.TempDir()
		if err := file("secret", v+"\n")(dir); err != nil {
			t.Fatal(err)
		}
		child(t, nil, "sh", "-c", `read -r v <"$1"; printf %s "$v" >/proc/$$/comm; `+waits, "sh", dir+"/secret")
		s := search(t, v)
		if err := s.Processes(ctx); err != nil {
			t.Fatal(err)
		}
		want(t, s, v, Comm, "plain")
	})
	t.Run("clean", func(t *testing.T) {
		s := search(t, token())
		if err := s.Processes(ctx); err != nil {
			t.Fatal(err)
		}
		none(t, s)
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if err := search(t, token()).Processes(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func TestWatch(t *testing.T) {
	v := token()
	s := search(t, v)
	boom := errors.New("boom")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	w, err := s.Watch(ctx, time.Millisecond, func() error {
		c := child(t, nil, "sh", "-c", waits, "x", v)
		for s.Report().Places == 0 { // the watch itself is what must see it
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		return errors.Join(c.Process.Kill(), boom)
	})
	if !errors.Is(err, boom) || w.Rounds < 2 {
		t.Errorf("%+v, %v", w, err)
	}
	want(t, s, v, Argv, "plain")
}

func TestFiles(t *testing.T) {
	v := token()
	escaped := `{"token":"` + strings.ReplaceAll(v[:20]+`"`+v[20:], `"`, `\"`) + `"}`
	big := bytes.Repeat([]byte("x"), streamRoom-20)
	for name, c := range map[string]struct {
		value, form string
		kind        Kind
		make        func(dir string) error
	}{
		"base64, 1 byte in": {v, "base64, 1 byte in", File, file("a/b", base64.StdEncoding.EncodeToString([]byte("x"+v)))},
		"base64 in lines":   {v, "base64", File, file("a", string(fold([]byte(base64.StdEncoding.EncodeToString([]byte(v))), 30, "\n")))},
		"json":              {v[:20] + `"` + v[20:], "json", File, file("log.json", escaped)},
		"across two reads":  {v, "plain", File, file("big", string(big)+v)},
		"behind a hole":     {v, "plain", File, sparse("hole", 1<<40, v)},
		"name":              {strings.ReplaceAll(v, "/", "_"), "plain", FileName, file("x"+strings.ReplaceAll(v, "/", "_"), "")},
		"symlink": {v, "plain", Symlink, func(dir string) error {
			return os.Symlink("/nowhere/"+v, filepath.Join(dir, "link"))
		}},
		"xattr": {v, "hex", Xattr, func(dir string) error {
			path := filepath.Join(dir, "attributed")
			err := os.WriteFile(path, nil, 0o600)
			return errors.Join(err, unix.Setxattr(path, "user.token", []byte(hex.EncodeToString([]byte(v))), 0))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := c.make(dir); err != nil {
				t.Fatal(err)
			}
			s := search(t, c.value)
			if err := s.Files(context.Background(), Files{Roots: []string{dir}, Since: time.Now()}); err != nil {
				t.Fatal(err)
			}
			want(t, s, c.value, c.kind, c.form)
		})
	}
}

func file(name, content string) func(dir string) error {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600))
	}
}

func sparse(name string, at int64, content string) func(dir string) error {
	return func(dir string) error {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte(content), at)
		return errors.Join(err, f.Close())
	}
}

func TestFilesSaysWhatItLeavesOut(t *testing.T) {
	v, dir := token(), t.TempDir()
	err := errors.Join(
		file("old", v)(dir),
		file("large", v+strings.Repeat("x", 10000))(dir),
		file("large at the end", strings.Repeat("x", 10000)+v)(dir),
	)
	if err != nil {
		t.Fatal(err)
	}
	s := search(t, v)
	if err := s.Files(context.Background(), Files{Roots: []string{dir}, MaxFile: 1000}); err != nil {
		t.Fatal(err)
	}
	r := s.Report()
	if len(r.NotSearched) != 1 || r.NotSearched[0].Count != 2 {
		t.Errorf("not searched: %+v", r.NotSearched)
	}
	if r.Places != 2 {
		t.Errorf("want the small file and the end of the large one:\n%s", reportText(t, r))
	}
	s = search(t, v)
	if err := s.Files(context.Background(), Files{Roots: []string{dir}, Since: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if r := s.Report(); r.Searched.Unchanged != 3 || r.Searched.Files != 0 {
		t.Errorf("unchanged files were searched: %+v", r.Searched)
	}
	s = search(t, v)
	if err := s.Files(context.Background(), Files{Roots: []string{dir}, Since: time.Now().Add(time.Hour), Always: []string{dir}}); err != nil {
		t.Fatal(err)
	}
	if r := s.Report(); r.Searched.Files != 3 {
		t.Errorf("files below Always were left out: %+v", r.Searched)
	}
	s = search(t, v)
	if err := s.Files(context.Background(), Files{Roots: []string{"/proc/self", "/sys"}}); err != nil {
		t.Fatal(err)
	}
}

func TestMeantPlacesAreReportedApart(t *testing.T) {
	v, dir := token(), t.TempDir()
	if err := errors.Join(file("meant/a", v)(dir), file("meantnot/b", v)(dir)); err != nil {
		t.Fatal(err)
	}
	s := search(t, v, Under("credentials directory", filepath.Join(dir, "meant")))
	if err := s.Files(context.Background(), Files{Roots: []string{dir}}); err != nil {
		t.Fatal(err)
	}
	r := s.Report()
	if r.Places != 1 || len(r.Meant) != 1 || r.Meant[0].Meant != "credentials directory" {
		t.Errorf("%s", reportText(t, r))
	}
}

func TestJournal(t *testing.T) {
	v, dir := token(), t.TempDir()
	entry := "__CURSOR=s=1\n_SYSTEMD_UNIT=x.service\nMESSAGE\n" + "\x2e\x00\x00\x00\x00\x00\x00\x00" + "a\n" + v + "\n\n"
	if err := file("export", strings.Repeat("MESSAGE=x\n\n", 50000)+entry)(dir); err != nil {
		t.Fatal(err)
	}
	s := search(t, v)
	if err := s.journal(context.Background(), exec.Command("cat", dir+"/export")); err != nil {
		t.Fatal(err)
	}
	want(t, s, v, Journal, "plain")
	if r := s.Report(); r.Searched.Journal < 500000 || len(r.NotSearched) != 0 {
		t.Errorf("%+v", r)
	}
	s = search(t, v)
	if err := s.journal(context.Background(), exec.Command("sh", "-c", "echo no permission: "+v+" >&2; exit 1")); err != nil {
		t.Fatal(err)
	}
	if r := s.Report(); len(r.NotSearched) != 1 || r.NotSearched[0].Why != "journalctl: no permission: <token>" {
		t.Errorf("%+v", r.NotSearched)
	}
	if err := s.Journal(context.Background(), time.Now()); err != nil {
		t.Error(err)
	}
}

func TestKernelLog(t *testing.T) {
	v := token()
	// The kernel shows a record only when its line has ended.
	if err := os.WriteFile("/dev/kmsg", []byte("<7>leak test: "+v+"\n"), 0); err != nil {
		t.Skipf("SKIPPED: needs to write to the kernel's log: %v", err)
	}
	s := search(t, v)
	if err := s.KernelLog(context.Background()); err != nil {
		t.Fatal(err)
	}
	if f := want(t, s, v, KernelLog, "plain"); f.Place.Detail == "record ?" {
		t.Errorf("%+v", f)
	}
}

func TestDescriptors(t *testing.T) {
	v := token()
	fd, err := unix.MemfdCreate("vmcred-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, []byte(v), 1<<30); err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err == nil {
		_, err = f.WriteString(hex.EncodeToString([]byte(v)))
		err = errors.Join(err, os.Remove(f.Name()))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := search(t, v, Memfds("the payload", "vmcred-"))
	if err := s.Descriptors(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := want(t, s, v, Descriptor, "plain"); got.Meant != "the payload" {
		t.Errorf("%+v", got)
	}
	if got := want(t, s, v, Descriptor, "hex"); got.Meant != "" {
		t.Errorf("%+v", got)
	}
}
