// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/broker"
	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/store/folder"
)

// The names that the broker's sockets have in their units (FileDescriptorName=).
const (
	loadSocket   = "load"
	runnerSocket = "runner"
)

func (a *app) brokerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "broker",
		Short: "hand out the secrets of this host's VMs (systemd starts it)",
		Long: `Hand out the secrets of this host's VMs: to the unit that a VM's file names, each
value on record first, all values of one start from one moment.

systemd starts it when somebody asks at one of its sockets:

  systemctl enable --now vmcred-broker.socket vmcred-runner.socket`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.broker(c.Context()) },
	}
}

func (a *app) broker(ctx context.Context) error {
	sockets, err := handedOver()
	if err != nil {
		return err
	}
	log, err := a.newLog("auto", "broker")
	if err != nil {
		return err
	}
	if err := guardMemory(log); err != nil {
		return err
	}
	settings := &hostSettings{a: a, log: log}
	b, err := broker.New(broker.Options{
		VMs: config.SystemDir, State: filepath.Join(state.SystemRoot, ".broker"), Settings: settings.now,
		User: func(name string) (uint32, error) {
			id, err := launch.Lookup(name)
			if err != nil {
				return 0, err
			}
			return id.UID, nil
		},
		Log: log, Version: version(),
	})
	if err != nil {
		return err
	}
	defer b.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	failed := make(chan error, len(sockets))
	for name, l := range sockets {
		serve := b.ServeRunners
		if name == loadSocket {
			serve = b.ServeLoads
		}
		all.Go(func() {
			defer cancel()
			failed <- serve(ctx, l)
		})
	}
	if _, err := daemon.SdNotify(false, "READY=1\nSTATUS=handing out what the files in "+config.SystemDir+" declare"); err != nil {
		log.Warn("systemd was not told", "error", err)
	}
	all.Wait()
	close(failed)
	var errs []error
	for err := range failed {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// handedOver are the listeners that systemd made (sd_listen_fds(3)).
func handedOver() (map[string]*net.UnixListener, error) {
	byName, err := activation.ListenersWithNames()
	if err != nil {
		return nil, err
	}
	out := map[string]*net.UnixListener{}
	for _, name := range []string{loadSocket, runnerSocket} {
		for _, l := range byName[name] {
			if u, ok := l.(*net.UnixListener); ok {
				u.SetUnlinkOnClose(false)
				out[name] = u
			}
		}
	}
	if len(out) == 0 {
		return nil, refusedError(&hinted{
			message: "the broker's sockets are missing: systemd makes them, and starts it",
			hint:    "systemctl enable --now vmcred-broker.socket vmcred-runner.socket",
		})
	}
	return out, nil
}

// guardMemory keeps others out of this process's memory, and what is in it from being
// swapped. Values have locked pages of their own in any case.
func guardMemory(log *slog.Logger) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keeping others out of this process's memory: %w", err)
	}
	// MCL_ONFAULT: what is reserved only is not fetched.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		log.Warn("only the values are locked in memory, not all of the broker", "error", err, "hint", "LimitMEMLOCK=infinity in vmcred-broker.service; in a container the host's limit counts")
	}
	return nil
}

// hostSettings are what the host's file says, read again when it is another one.
type hostSettings struct {
	a   *app
	log *slog.Logger

	mu      sync.Mutex
	read    bool
	stamp   [2]fileStamp
	current *broker.Settings
	err     error
}

// fileStamp tells one state of a file from another.
type fileStamp struct {
	ino          uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func stampOf(path string) fileStamp {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return fileStamp{}
	}
	return fileStamp{st.Ino, st.Size, st.Mtim, st.Ctim}
}

func (h *hostSettings) now() (*broker.Settings, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	dir := filepath.Dir(config.SystemDir)
	stamp := [2]fileStamp{stampOf(filepath.Join(dir, "vmcred.yaml")), stampOf(filepath.Join(dir, "vmcred.json"))}
	// A store that was missing may be there by now.
	if !h.read || stamp != h.stamp || h.err != nil || h.current.NoStore != nil {
		h.read, h.stamp = true, stamp
		h.current, h.err = h.load(h.current)
	}
	return h.current, h.err
}

func (h *hostSettings) load(old *broker.Settings) (*broker.Settings, error) {
	host, problems := config.LoadHost(h.a.uid, h.a.getenv)
	if host == nil {
		return nil, &runner.RefusedError{Problems: problems}
	}
	path, err := h.a.auditPath()
	if err != nil {
		return nil, err
	}
	s := &broker.Settings{LogPath: path, CheckSources: host.CheckSources}
	if old != nil && old.LogPath == path {
		s.Log = old.Log // who appends at the same moment shares a sync
	} else {
		s.Log = &brokerLog{a: h.a, path: path, log: h.log}
	}
	if vars := h.a.varsPath(host); vars != "" {
		// Without it VMs get the rest all the same.
		if f, err := folder.Open(vars, h.a.uid); err != nil {
			s.NoStore = err
		} else {
			s.Store = f
		}
	}
	return s, nil
}

// brokerLog opens the log when it is needed, and again when its directory is another one.
type brokerLog struct {
	a    *app
	path string
	log  *slog.Logger

	mu  sync.Mutex
	to  *audit.Log
	dir *os.File
}

// Append implements broker.Recorder.
func (l *brokerLog) Append(ctx context.Context, entries ...audit.Entry) error {
	to, err := l.open()
	if err != nil {
		return err
	}
	return to.Append(ctx, entries...)
}

func (l *brokerLog) open() (*audit.Log, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dir != nil && sameFile(l.dir, filepath.Dir(l.path)) {
		return l.to, nil
	}
	to, dir, err := l.a.auditLog(l.path, l.head)
	if err != nil {
		return nil, err
	}
	// The one before may be in use: it is closed with the last of its uses.
	l.to, l.dir = to, dir
	return to, nil
}

// head copies the log's end into the journal.
func (l *brokerLog) head(h audit.Head) {
	l.log.Info("on record in "+l.path, "audit_log", l.path, "audit_head", h.String())
}

func sameFile(f *os.File, path string) bool {
	own, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(path)
	return err == nil && os.SameFile(own, now)
}

// varsPath is the folder of var: sources: $VMCRED_VARS before the host's file.
func (a *app) varsPath(host *config.Host) string {
	if p := a.getenv("VMCRED_VARS"); filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return host.Vars
}

// noStore is why a var: source cannot be read.
func noStore(uid int) error {
	file := "/etc/vmcred/vmcred.yaml"
	if uid != 0 {
		file = "$XDG_CONFIG_HOME/vmcred/vmcred.yaml"
	}
	return &hinted{message: "no store is known for var: sources", hint: "name its folder in " + file + ": vars: DIR; or VMCRED_VARS=DIR"}
}
