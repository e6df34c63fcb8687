// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"

	"github.com/vmcred/vmcred/leak"
	"github.com/vmcred/vmcred/secret"
)

// haystack says what to search for, and where the values may be.
type haystack struct {
	Since  time.Time
	Values map[string]string
	Meant  map[string]string // directories, by what they are
}

// planted is a value that searchAll puts where it must be found: a search that
// does not find it there has not looked.
const planted = "planted"

// searchAll searches the container for every value while the VM runs.
func searchAll(in []byte) (any, error) {
	var h haystack
	if err := json.Unmarshal(in, &h); err != nil {
		return nil, err
	}
	h.Values[planted] = rand.Text()
	takeAway, err := plant(h.Values[planted])
	defer takeAway()
	if err != nil {
		return nil, err
	}
	needles, forget, err := needlesOf(h.Values)
	if err != nil {
		return nil, err
	}
	defer forget()
	var meant []leak.Meant
	for name, dir := range h.Meant {
		meant = append(meant, leak.Under(name, dir))
	}
	s := leak.New(needles, meant...)
	if err := s.System(context.Background(), leak.System{Since: h.Since}); err != nil {
		return nil, err
	}
	return s.Report(), nil
}

// needlesOf makes something to search for of values, by name.
func needlesOf(values map[string]string) (needles *leak.Needles, forget func(), err error) {
	arena := secret.NewArena()
	defer func() {
		if err != nil {
			_ = arena.Close()
		}
	}()
	var list []leak.Needle
	for name, value := range values {
		v, err := arena.Read(strings.NewReader(value), len(value))
		if err != nil {
			return nil, nil, err
		}
		list = append(list, leak.Needle{Name: name, Value: v})
	}
	if needles, err = leak.NewNeedles(list...); err != nil {
		return nil, nil, err
	}
	return needles, func() { _ = needles.Close(); _ = arena.Close() }, nil
}

// somebodys are values that may be in a process's memory.
type somebodys struct {
	PID    int
	Values map[string]string
}

// searchMemory returns whose values are in a process's memory, by name.
func searchMemory(in []byte) (any, error) {
	var s somebodys
	if err := json.Unmarshal(in, &s); err != nil {
		return nil, err
	}
	needles, forget, err := needlesOf(s.Values)
	if err != nil {
		return nil, err
	}
	defer forget()
	found, err := leak.New(needles).Memory(context.Background(), s.PID)
	if err != nil {
		return nil, err
	}
	names := map[string]int{}
	for _, c := range found.Copies {
		names[c.Needle] += c.Count
	}
	return names, nil
}

// plant puts a value into a file, the journal and a process's environment and
// arguments. What it returns is never nil.
func plant(value string) (takeAway func(), err error) {
	const file = "/tmp/planted"
	cmd := exec.Command("sleep", "infinity", "--", value)
	cmd.Args = []string{value, "infinity"}
	cmd.Env = []string{"PLANTED=" + value}
	takeAway = func() {
		_ = os.Remove(file)
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	err = errors.Join(
		os.WriteFile(file, []byte(value), 0o600),
		sdjournal.Send("planted: "+value, sdjournal.PriInfo, nil),
		cmd.Start(),
	)
	if err == nil && os.Geteuid() == 0 { // nobody else may
		err = exec.Command("journalctl", "--sync").Run()
	}
	return takeAway, err
}
