// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"fmt"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/secret"
)

// feed holds the encoded values in locked memory files until QEMU has read them.
type feed struct {
	payload *delivery.Payload
	smbios  []*secret.Memfd
	fwCfg   []keyed
}

type keyed struct {
	key string
	*secret.Memfd
}

// newFeed puts each structure and each item into a memory file that belongs to
// the VMM's user and to nobody else. The payload is the feed's from here on.
func newFeed(p *delivery.Payload, plan delivery.Plan, id *launch.Identity) (*feed, error) {
	f := &feed{payload: p}
	if err := f.fill(plan, id); err != nil {
		return nil, errors.Join(err, f.release())
	}
	return f, nil
}

func (f *feed) fill(plan delivery.Plan, id *launch.Identity) error {
	items := 0
	for _, e := range plan.Entries {
		if e.Channel == delivery.FwCfg {
			items++
		}
	}
	if len(f.payload.SMBIOS) != plan.Structs || len(f.payload.FwCfg) != items {
		return fmt.Errorf("the values are %d structures and %d items, planned were %d and %d",
			len(f.payload.SMBIOS), len(f.payload.FwCfg), plan.Structs, items)
	}
	for _, r := range f.payload.SMBIOS {
		m, err := newMemfd("smbios", r, id)
		if err != nil {
			return err
		}
		f.smbios = append(f.smbios, m)
	}
	for _, b := range f.payload.FwCfg {
		m, err := newMemfd("fw_cfg", b.Rope, id)
		if err != nil {
			return err
		}
		f.fwCfg = append(f.fwCfg, keyed{b.Name, m})
	}
	return nil
}

func newMemfd(name string, r secret.Rope, id *launch.Identity) (*secret.Memfd, error) {
	m, err := secret.NewMemfd(name, r)
	if err != nil {
		return nil, err
	}
	if id == nil {
		return m, nil
	}
	if err := m.Chown(int(id.UID), int(id.GID)); err != nil {
		return nil, errors.Join(fmt.Errorf("giving a memory file to %s: %w", hostcheck.UserName(id), err), m.Release())
	}
	return m, nil
}

// release empties and closes every memory file and wipes the encodings. QEMU's
// own descriptors, which it keeps for its whole life, lead to empty files then.
func (f *feed) release() error {
	if f == nil {
		return nil
	}
	var errs []error
	for _, m := range f.smbios {
		errs = append(errs, m.Release())
	}
	for _, m := range f.fwCfg {
		errs = append(errs, m.Release())
	}
	errs = append(errs, f.payload.Close())
	f.smbios, f.fwCfg = nil, nil
	return errors.Join(errs...)
}
