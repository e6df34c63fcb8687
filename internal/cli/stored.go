// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/vmcred/vmcred/broker/client"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/vm"
)

// brokerWait is how long those who only look wait for the broker.
const brokerWait = 3 * time.Second

func (a *app) askBroker() *client.Client { return client.New(client.Options{Wait: brokerWait}) }

// compare says of each credential that a VM was given whether its source has another
// value by now. Of a unit's VM the broker knows that, for root.
func (a *app) compare(ctx context.Context, i *inspected) {
	switch {
	case !i.State.runs():
		return
	case i.found.Handle() != nil:
		i.Delivered = append([]state.Delivered{}, i.Delivered...)
		for n := range i.Delivered {
			i.Delivered[n].Now = a.nowOf(ctx, i, &i.Delivered[n])
		}
	case a.uid == 0 && i.Systemd != nil && i.spec != nil && len(i.spec.Credentials) > 0:
		given, err := a.askBroker().Status(ctx, i.VM)
		if err != nil {
			i.Unknown = "what it was given is not known: " + err.Error()
			return
		}
		for _, d := range given {
			i.Delivered = append(i.Delivered, state.Delivered{
				Host: d.Host, Guest: d.Guest, Bytes: d.Bytes, Channel: d.Channel, Version: d.Version, Proven: state.Unknown, Now: state.Now(d.Now),
			})
		}
	}
	for _, d := range i.Delivered {
		i.RestartNeeded = i.RestartNeeded || d.Now == state.Now(wire.Changed)
	}
}

// nowOf compares one credential of a plain run with its source.
func (a *app) nowOf(ctx context.Context, i *inspected, d *state.Delivered) state.Now {
	if d.Host == "" || i.spec == nil || i.found.Record.Read.IsZero() {
		return ""
	}
	for _, c := range i.spec.Credentials {
		switch {
		case c.Host != d.Host:
		case c.Source.Kind == vm.SourceVar && d.Version != "":
			return a.nowOfVar(ctx, c, d)
		case c.Source.Kind == vm.SourceFile && d.Version == "":
			return nowOfFile(c.Source.Path, i.found.Record.Read)
		default:
			return state.Now(wire.Unknown)
		}
	}
	return state.Now(wire.Gone)
}

func (a *app) nowOfVar(ctx context.Context, c vm.Credential, d *state.Delivered) state.Now {
	s, err := a.hostStore()
	if err != nil {
		return state.Now(wire.Unknown)
	}
	ref, _ := store.ParseVar(c.Source.Path)
	snapshot, err := s.Pin(ctx, ref)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return state.Now(wire.Gone)
	case err != nil:
		return state.Now(wire.Unknown)
	}
	defer snapshot.Close()
	if snapshot.Version(ref) != store.Version(d.Version) {
		return state.Now(wire.Changed)
	}
	return state.Now(wire.Same)
}

// nowOfFile: a file that changed since it was read may have another value. Its content is
// not looked at.
func nowOfFile(path string, read time.Time) state.Now {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return state.Now(wire.Gone)
	case err != nil:
		return state.Now(wire.Unknown)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || time.Unix(st.Ctim.Unix()).After(read) {
		return state.Now(wire.Changed)
	}
	return state.Now(wire.Same)
}

// brokerHealth is how the host's broker is, for root, and for others where there is one.
type brokerHealth struct {
	*wire.State
	Error string `json:"error,omitempty"` // why it is not known
	Hint  string `json:"hint,omitempty"`
}

func (a *app) brokerHealth(ctx context.Context) *brokerHealth {
	if _, err := os.Lstat(wire.Socket); err != nil && a.uid != 0 {
		return nil
	}
	h, err := a.askBroker().Health(ctx)
	if err != nil {
		return &brokerHealth{Error: err.Error(), Hint: hintOf(err)}
	}
	return &brokerHealth{State: h}
}
