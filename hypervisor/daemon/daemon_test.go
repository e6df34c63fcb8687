// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/vmcred/vmcred/internal/launch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is a log that another goroutine writes to.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func started(t *testing.T, script string, log Log) *Daemon {
	t.Helper()
	d, err := Start(&launch.Command{Path: "/bin/sh", Args: []string{"-c", script}}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Kill)
	return d
}

func TestEnd(t *testing.T) {
	for name, tc := range map[string]struct{ script, how string }{
		"well":     {"exit 0", "ended (exit status 0): and said nothing"},
		"badly":    {`printf 'one\ntwo \033[31m\n' >&2; exit 3`, "ended (exit status 3): one; two ?[31m"},
		"a signal": {"kill -TERM $$", "ended (SIGTERM): and said nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			d := started(t, tc.script, Log{})
			<-d.Done()
			if d.How() != tc.how {
				t.Errorf("%q, want %q", d.How(), tc.how)
			}
			if d.Running() || d.EndedWell() != (name == "well") {
				t.Errorf("running %v, ended well %v", d.Running(), d.EndedWell())
			}
		})
	}
}

func TestLog(t *testing.T) {
	var log buffer
	d := started(t, "echo one; echo two >&2", Log{Of: "sh", Prefix: "share x: ", To: &log})
	<-d.Done()
	if want := "share x: one\nshare x: two\n"; log.String() != want {
		t.Errorf("the log has %q, want %q", log.String(), want)
	}
}

func TestRuns(t *testing.T) {
	d := started(t, "exec sleep 1000", Log{})
	if !d.Running() || d.How() != "runs" || d.EndedWell() || Closed(d.Done(), 0) {
		t.Error("it has ended")
	}
	d.Kill()
	if d.Running() || d.How() != "ended (SIGKILL): and said nothing" {
		t.Error(d.How())
	}
}

// A VMM with much memory takes its time after it has hung up.
func TestOutlived(t *testing.T) {
	gone, runs := make(chan struct{}), make(chan struct{})
	close(gone)
	d := started(t, "exec sleep 1000", Log{})
	if d.Outlived(gone) {
		t.Error("the VMM ended first")
	}
	d.Kill()
	if !d.Outlived(runs) || d.patience() != grace {
		t.Error("the daemon was killed, and its VMM runs")
	}
	if d.Outlived(gone) {
		t.Error("both have ended")
	}
	well := started(t, "exit 0", Log{})
	<-well.Done()
	if well.patience() != hungUp {
		t.Error("a VMM that hung up has no time to end")
	}
}

func TestStartFails(t *testing.T) {
	if d, err := Start(&launch.Command{Path: "/nonexistent/daemon"}, Log{}); d != nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, %v", d, err)
	}
}
