// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/internal/trusted"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/state"
)

// auditFile is the log's name where nobody gives it another.
const auditFile = "audit.log"

// auditPath is where what this user hands over is put on record: the first of
// $VMCRED_AUDIT, audit: in the host's file, and a place of the user's own. What a unit of
// the host's gets is put on record by the broker, in root's.
func (a *app) auditPath() (string, error) {
	if p := a.getenv("VMCRED_AUDIT"); p != "" {
		if !filepath.IsAbs(p) || strings.HasSuffix(p, "/") {
			return "", refusedError(&hinted{message: "VMCRED_AUDIT is not the absolute path of a file", hint: "as in /var/log/vmcred/audit.log"})
		}
		return filepath.Clean(p), nil
	}
	host, problems := config.LoadHost(a.uid, a.getenv)
	if host == nil {
		return "", &runner.RefusedError{Problems: problems}
	}
	if host.Audit != "" {
		return host.Audit, nil
	}
	if a.uid == 0 {
		return "/var/log/vmcred/" + auditFile, nil
	}
	base := a.getenv("XDG_STATE_HOME") // XDG Base Directory
	if !filepath.IsAbs(base) {
		home := a.getenv("HOME")
		if !filepath.IsAbs(home) {
			return "", refusedError(&hinted{
				message: "cannot tell where the audit log is: neither XDG_STATE_HOME nor HOME is an absolute path",
				hint:    "set HOME, or VMCRED_AUDIT",
			})
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "vmcred", auditFile), nil
}

// openAuditDir opens the directory of a log that is to be written, and makes it if
// it is missing. Nobody else may be able to write it.
func (a *app) openAuditDir(p string) (*os.File, error) {
	dir := filepath.Dir(p)
	fail := func(err error) error {
		return &audit.Error{Log: p, What: "cannot be written", Err: err}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		e := &audit.Error{Log: p, What: "its directory cannot be made", Err: err}
		if errors.Is(err, fs.ErrPermission) {
			e.Cure = fmt.Sprintf("user %d must be able to write it: set audit: in the host's file", a.uid)
		}
		return nil, e
	}
	fd, err := trusted.Directory(dir, a.uid)
	if err != nil {
		return nil, fail(err)
	}
	f := os.NewFile(uintptr(fd), dir)
	info, err := f.Stat()
	if err == nil && info.Mode().Perm()&0o022 != 0 { // sticky is not enough here
		err = &trusted.Error{Path: dir, What: "can be written by others", Tip: "keep the log in a directory of its own"}
	}
	if err != nil {
		return nil, errors.Join(fail(err), f.Close())
	}
	return f, nil
}

// auditLog opens the log to write. The caller closes the directory.
func (a *app) auditLog(p string, head func(audit.Head)) (*audit.Log, *os.File, error) {
	dir, err := a.openAuditDir(p)
	if err != nil {
		return nil, nil, err
	}
	name, _ := os.Hostname()                                  // the record says who
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // and when, without them
	o := audit.Options{Host: name, Boot: strings.TrimSpace(string(boot)), Head: head}
	return audit.New(dir, filepath.Base(p), o), dir, nil
}

// recorder puts on record what runner hands over.
type recorder struct {
	a    *app
	path string
	log  *slog.Logger
}

// asker is this process: who has started a VM.
func (a *app) asker() *audit.Who {
	p := state.Describe(a.pid)
	w := &audit.Who{UID: a.uid, PID: a.pid, Start: p.Start}
	if a.inUnit() {
		group, _ := os.ReadFile("/proc/self/cgroup") // the record says who without it
		w.Invocation, w.Unit = a.getenv("INVOCATION_ID"), peer.UnitOf(string(group))
	}
	return w
}

func (r *recorder) append(ctx context.Context, entries []audit.Entry, head func(audit.Head)) error {
	log, dir, err := r.a.auditLog(r.path, head)
	if err != nil {
		return err
	}
	defer dir.Close()
	return log.Append(ctx, entries...)
}

// head puts the log's end into the journal, where it shows later if the log was cut.
func (r *recorder) head(h audit.Head) {
	r.log.Info("on record in "+r.path, "audit_log", r.path, "audit_head", h.String())
}

// Release implements runner.Recorder.
func (r *recorder) Release(ctx context.Context, vm string, all []runner.Release) error {
	by := r.a.asker()
	var entries []audit.Entry
	for _, c := range all {
		entries = append(entries, audit.Entry{
			Op: audit.Release, By: by, VM: vm, Decision: audit.Allow, Value: c.Value,
			Credential: &audit.Credential{Host: c.Host, Guest: c.Guest, Bytes: c.Bytes, Channel: c.Channel}, Version: c.Version,
		})
	}
	return r.append(ctx, entries, r.head)
}

// Refuse implements runner.Recorder.
func (r *recorder) Refuse(ctx context.Context, vm string, all []runner.Refusal) {
	by := r.a.asker()
	var entries []audit.Entry
	for _, c := range all {
		e := audit.Entry{Op: audit.Refuse, By: by, VM: vm, Decision: audit.Deny, Reason: c.Reason}
		if c.Host != "" {
			e.Credential = &audit.Credential{Host: c.Host}
		}
		entries = append(entries, e)
	}
	// The end is not said: the errors are what matters, and the next one covers it.
	if err := r.append(ctx, entries, nil); err != nil {
		r.log.Warn("the refusal is not on record", "error", err, "hint", hintOf(err))
	}
}
