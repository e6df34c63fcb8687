// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/broker/client"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/secret"
)

// wanted is whose secrets somebody asks the broker for.
type wanted struct {
	VM         string
	Unit       string
	Credential string // one of its VM's
	Runner     int    // the process that may
	Only       string // one question; empty: all
}

const brokerRefuses = "the broker refuses: "

// askBroker asks in every way there is, and returns how each ended.
func askBroker(in []byte) (any, error) {
	var w wanted
	if err := json.Unmarshal(in, &w); err != nil {
		return nil, err
	}
	ended := map[string]string{}
	all := questions(w)
	// In order: who may take something may do so once.
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if w.Only != "" && name != w.Only {
			continue
		}
		ended[name] = gotThrough
		err := all[name]()
		var refused *client.RefusedError
		switch {
		case errors.As(err, &refused):
			ended[name] = brokerRefuses + err.Error()
		case err != nil:
			ended[name] = err.Error()
		}
	}
	return ended, nil
}

// questions are the ways, by name: each returns nil if it got through.
func questions(w wanted) map[string]func() error {
	ctx, c := context.Background(), client.New(client.Options{})
	name := fmt.Sprintf("@%x/unit/%s/%s", os.Getpid(), w.Unit, w.Credential)
	all := map[string]func() error{
		"health": func() error { _, err := c.Health(ctx); return err },
		"take":   func() error { return take(w.VM) },
		"record": func() error {
			a := secret.NewSmallArena()
			defer a.Close()
			v, err := a.Read(strings.NewReader("a lie"), 16)
			if err != nil {
				return err
			}
			said := []wire.Credential{{Host: w.Credential, Bytes: v.Len(), Channel: "smbios"}}
			return c.Record(ctx, w.VM, said, []*secret.Value{v})
		},
		"record a refusal":       func() error { return c.Refuse(ctx, w.VM, []wire.Refusal{{Host: w.Credential, Reason: "a lie"}}) },
		"status":                 func() error { _, err := c.Status(ctx, w.VM); return err },
		"take called as systemd": func() error { return rawTake(w.VM, name, nil) },
		"take with another's pid": func() error {
			return rawTake(w.VM, "", &unix.Ucred{Pid: int32(w.Runner), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())})
		},
		"take as root":             func() error { return rawTake(w.VM, "", &unix.Ucred{Pid: int32(os.Getpid())}) },
		"load as systemd":          func() error { return load(wire.LoadSocket, name) },
		"load at the other socket": func() error { return load(wire.Socket, name) },
		"take the socket away":     func() error { return os.Rename(wire.Socket, wire.Socket+".x") },
		"put one beside it":        func() error { return squat(filepath.Join(filepath.Dir(wire.Socket), "x.sock")) },
	}
	for _, other := range []string{"../vms/" + w.VM, strings.ToUpper(w.VM), w.VM + ".yaml", w.VM + "\x00", ""} {
		all[fmt.Sprintf("take %q", other)] = func() error { return take(other) }
	}
	return all
}

// take asks as a runner does.
func take(vm string) error {
	a := secret.NewSmallArena()
	defer a.Close()
	taken, err := client.New(client.Options{}).Take(context.Background(), vm, a)
	if err == nil && len(taken.Values) == 0 {
		return errors.New("there is nothing to be taken")
	}
	return err
}

// rawTake asks with a name bound, or with the credentials of somebody else.
func rawTake(vm, local string, as *unix.Ucred) error {
	c, err := dialAs(wire.Socket, local)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := wire.ReceiveHello(c); err != nil {
		return err
	}
	body, err := json.Marshal(wire.Request{Protocol: wire.Protocol, Op: wire.Take, VM: vm})
	if err != nil {
		return err
	}
	var more []byte
	if as != nil {
		more = unix.UnixCredentials(as)
	}
	frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	if _, _, err := c.WriteMsgUnix(frame, more, nil); err != nil {
		return err
	}
	a := secret.NewSmallArena()
	defer a.Close()
	answer, values, err := wire.ReceiveAnswer(c, a)
	switch {
	case err != nil:
		return err
	case len(answer.Problems) > 0:
		return &client.RefusedError{Problems: answer.Problems}
	case len(values) == 0:
		return errors.New("there is nothing to be taken")
	}
	return nil
}

// load asks as systemd does.
func load(socket, name string) error {
	c, err := dialAs(socket, name)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.CloseWrite(); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	switch {
	case len(bytes.Trim(b, "\x00")) == 0: // as it refuses
		return &client.RefusedError{Problems: []wire.Problem{{Message: fmt.Sprintf("%d zeros", len(b))}}}
	case bytes.Contains(b, []byte(`"protocol":`)) && len(b) < 1<<10: // its Hello, and nothing but words
		return &client.RefusedError{Problems: []wire.Problem{{Message: "words"}}}
	}
	return err
}

func dialAs(socket, local string) (*net.UnixConn, error) {
	var name *net.UnixAddr
	if local != "" {
		name = &net.UnixAddr{Net: "unix", Name: local}
	}
	return net.DialUnix("unix", name, &net.UnixAddr{Net: "unix", Name: socket})
}

// squat listens in another's place.
func squat(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	return l.Close()
}

// connectToAny connects to every socket that has a name (/proc/net/unix), to get to one of
// these processes.
func connectToAny(pids map[string]int) error {
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return err
	}
	tried := 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line) // Num RefCount Protocol Flags Type St Inode Path
		network := map[string]string{"0001": "unix", "0005": "unixpacket"}[f[4]]
		if len(f) < 8 || network == "" {
			continue
		}
		tried++
		c, err := net.Dial(network, f[7])
		if err != nil {
			continue
		}
		p, err := peer.Of(c.(*net.UnixConn))
		_ = c.Close()
		if err != nil {
			continue
		}
		_ = p.Close()
		for _, pid := range pids {
			if pid == p.PID {
				return nil
			}
		}
	}
	return fmt.Errorf("none of %d sockets is theirs: %w", tried, os.ErrPermission)
}
