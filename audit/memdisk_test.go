// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

var errCrash = errors.New("the machine is down")

// memDisk is a directory that forgets at a crash what was not synced. It crashes at
// a step: a write, a sync, a change of a name.
type memDisk struct {
	rng     *rand.Rand
	names   map[string]*inode
	durable map[string]*inode
	pending []func(map[string]*inode) // changes of names since the last sync
	steps   int
	crashAt int // the step at which it crashes; 0: never
	down    bool
	fail    func(step string) (short int, err error) // an error, no crash
	syncs   int                                      // of content
	gate    func()                                   // called in a sync of content
}

type inode struct {
	now, durable []byte
	pending      []change
	locked       bool
}

// change is one write, or the cutting of a file (data is nil).
type change struct {
	data []byte
	off  int64
}

func newMemDisk(seed uint64) *memDisk {
	return &memDisk{rng: rand.New(rand.NewPCG(seed, 1)), names: map[string]*inode{}, durable: map[string]*inode{}}
}

// step reports whether the step is done, and whether the machine is still up.
func (d *memDisk) step() (done bool, err error) {
	if d.down {
		return false, errCrash
	}
	d.steps++
	if d.steps == d.crashAt {
		d.down = true
		return d.rng.IntN(2) == 0, errCrash
	}
	return true, nil
}

func (d *memDisk) rename(f func(map[string]*inode)) error {
	done, err := d.step()
	if done {
		f(d.names)
		d.pending = append(d.pending, f)
	}
	return err
}

func (d *memDisk) Path() string { return "/mem" }

func (d *memDisk) Open(name string, create bool) (file, error) {
	n, ok := d.names[name]
	if !ok && !create {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if !ok {
		n = &inode{}
		if err := d.rename(func(m map[string]*inode) { m[name] = n }); err != nil {
			return nil, err
		}
	}
	return &memFile{d: d, n: n}, nil
}

func (d *memDisk) Read(name string) (file, error) { return d.Open(name, false) }

func (d *memDisk) Lock(_ context.Context, name string, create bool) (file, error) {
	f, err := d.Open(name, create)
	if err != nil {
		return nil, err
	}
	m := f.(*memFile)
	if m.n.locked {
		return nil, errors.New("locked")
	}
	m.n.locked, m.holds = true, true
	return m, nil
}

func (d *memDisk) Names() ([]string, error) { return slices.Collect(maps.Keys(d.names)), nil }

func (d *memDisk) Link(old, name string) error {
	if d.names[name] != nil {
		return fs.ErrExist
	}
	return d.rename(func(m map[string]*inode) { m[name] = m[old] })
}

func (d *memDisk) Rename(old, name string) error {
	return d.rename(func(m map[string]*inode) {
		m[name] = m[old]
		delete(m, old)
	})
}

func (d *memDisk) Remove(name string) error {
	return d.rename(func(m map[string]*inode) { delete(m, name) })
}

func (d *memDisk) Sync() error {
	done, err := d.step()
	if done {
		d.durable, d.pending = maps.Clone(d.names), nil
	}
	return err
}

// reboot is the disk after the crash: of a killed process all is there, after a
// loss of power a part of what was not synced.
func (d *memDisk) reboot(powerLoss bool) *memDisk {
	out := newMemDisk(d.rng.Uint64())
	names := maps.Clone(d.names)
	if powerLoss {
		names = maps.Clone(d.durable)
		for _, f := range d.pending[:d.rng.IntN(len(d.pending)+1)] {
			f(names)
		}
	}
	same := map[*inode]*inode{}
	for name, n := range names {
		if n == nil {
			continue
		}
		if same[n] == nil {
			b := bytes.Clone(n.now)
			if powerLoss {
				b = n.survives(d.rng)
			}
			same[n] = &inode{now: b, durable: bytes.Clone(b)}
		}
		out.names[name], out.durable[name] = same[n], same[n]
	}
	return out
}

// survives applies each sector of each write, or not.
func (n *inode) survives(rng *rand.Rand) []byte {
	b := bytes.Clone(n.durable)
	for _, c := range n.pending {
		if c.data == nil {
			if rng.IntN(2) == 0 {
				b = resize(b, c.off)
			}
			continue
		}
		for at := 0; at < len(c.data); {
			to := min(len(c.data), at+512-int((c.off+int64(at))%512))
			if rng.IntN(3) > 0 {
				b = put(b, c.data[at:to], c.off+int64(at))
			}
			at = to
		}
	}
	return b
}

func resize(b []byte, size int64) []byte {
	if int64(len(b)) > size {
		return b[:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

func put(b, data []byte, off int64) []byte {
	if end := off + int64(len(data)); int64(len(b)) < end {
		b = resize(b, end)
	}
	copy(b[off:], data)
	return b
}

type memFile struct {
	d     *memDisk
	n     *inode
	holds bool
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	if off >= int64(len(f.n.now)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.now[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	short, failure := len(b), error(nil)
	if f.d.fail != nil {
		if s, err := f.d.fail("write"); err != nil {
			short, failure = min(s, len(b)), err
		}
	}
	done, err := f.d.step()
	if err != nil {
		short = f.d.rng.IntN(len(b) + 1)
		if !done || f.d.crashAt != f.d.steps {
			short = 0
		}
	}
	if data := bytes.Clone(b[:short]); short > 0 {
		f.n.now = put(f.n.now, data, off)
		f.n.pending = append(f.n.pending, change{data, off})
	}
	return short, errors.Join(failure, err)
}

func (f *memFile) Truncate(size int64) error {
	done, err := f.d.step()
	if done {
		f.n.now = resize(f.n.now, size)
		f.n.pending = append(f.n.pending, change{nil, size})
	}
	return err
}

func (f *memFile) Sync() error {
	if f.d.gate != nil {
		f.d.gate()
	}
	if f.d.fail != nil {
		if _, err := f.d.fail("sync"); err != nil {
			return err
		}
	}
	done, err := f.d.step()
	if done {
		f.d.syncs++
		f.n.durable, f.n.pending = bytes.Clone(f.n.now), nil
	}
	return err
}

func (f *memFile) Size() (int64, error) { return int64(len(f.n.now)), nil }
func (f *memFile) Same(other file) bool { return f.n == other.(*memFile).n }

func (f *memFile) Close() error {
	if f.holds {
		f.n.locked = false
	}
	return nil
}

// wantWhole verifies a log and returns what it found.
func wantWhole(t *testing.T, d disk, c Check) *Report {
	t.Helper()
	r := &Reader{d, "audit.log"}
	rep, err := r.Verify(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range rep.Faults {
		t.Error(f)
	}
	return rep
}

// all reads every record.
func all(t *testing.T, d disk) []Record {
	t.Helper()
	var out []Record
	for l, err := range (&Reader{d, "audit.log"}).Lines() {
		if err != nil || l.Err != nil {
			t.Fatal(l, err)
		}
		out = append(out, l.Record)
	}
	return out
}
