// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/store"
)

// given is what one start of a unit was given: names and versions, no value. It is written
// down before the first byte leaves, so that another broker after a crash gives the same
// or nothing.
type given struct {
	Unit       string                   `json:"unit"`
	Invocation string                   `json:"invocation"`
	VM         string                   `json:"vm"`
	Versions   map[string]store.Version `json:"versions,omitempty"` // by generator
	Taken      bool                     `json:"taken,omitempty"`    // by our runner, all of them
	Records    int                      `json:"records,omitempty"`  // how often the runner had them put on record
	Delivered  []wire.Delivered         `json:"delivered,omitempty"`
}

func (g *given) copy() *given {
	c := *g
	c.Delivered = slices.Clone(g.Delivered) // the versions are never changed, only replaced
	return &c
}

// add notes a credential that is about to leave, in place of what was said of it before.
func (g *given) add(d wire.Delivered) {
	i := slices.IndexFunc(g.Delivered, func(o wire.Delivered) bool { return o.Host == d.Host })
	if i < 0 {
		g.Delivered = append(g.Delivered, d)
		return
	}
	g.Delivered[i] = d
}

// stateDir has a file for each start, called by its invocation. It is in /run: after a boot
// nothing is running.
type stateDir struct{ path string }

const givenMax = 4 << 20 // bytes; a thousand credentials are a tenth of it

func (d *stateDir) load(invocation string) (*given, error) {
	b, err := readMax(filepath.Join(d.path, invocation), givenMax)
	if err != nil {
		return nil, err
	}
	var g given
	if err := json.Unmarshal(b, &g); err != nil {
		return nil, fmt.Errorf("what was given to start %s cannot be read: %w", invocation, err)
	}
	return &g, nil
}

func readMax(path string, max int64) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > max {
		return nil, fmt.Errorf("%s is not what a broker writes", path)
	}
	return os.ReadFile(path)
}

func (d *stateDir) save(g *given) error {
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	path := filepath.Join(d.path, g.Invocation)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(path+".new")))
	}
	return os.Rename(path+".new", path)
}

func (d *stateDir) remove(invocation string) {
	_ = os.Remove(filepath.Join(d.path, invocation)) // the next broker tidies what is left
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// tidy makes the directory, and removes the files of starts that keep does not want.
func (d *stateDir) tidy(keep func(*given) bool) error {
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return fmt.Errorf("the directory for what was given out cannot be made: %w", err)
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		g, err := d.load(e.Name())
		if err == nil && !strings.HasSuffix(e.Name(), ".new") && g.Invocation == e.Name() && keep(g) {
			continue
		}
		if err := os.Remove(filepath.Join(d.path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
