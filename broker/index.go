// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/vm"
)

// index knows the VMs' files as they are now: one that was read is read again only when it
// is another one. All are looked through for a unit that is not known; for one that is, when
// names came or went, and now and then, as another file may name it, too, by now.
type index struct {
	dir string

	mu     sync.Mutex
	files  map[string]*read    // by path
	units  map[string][]string // paths by unit, as the last look at all found them
	names  stamp               // the directory's, before that
	looked time.Time
}

// looksEvery is how long one look at all of a thousand files, some milliseconds, is enough
// for. Only a file that was rewritten in place can go unseen so long.
const looksEvery = time.Second

type read struct {
	stamp stamp
	spec  *vm.Spec // nil: it cannot be used
	why   vm.Problems
}

// stamp tells one state of a file from another.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}, errors.ErrUnsupported
	}
	return stamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

func newIndex(dir string) *index {
	return &index{dir: dir, files: map[string]*read{}, units: map[string][]string{}}
}

// named is the VM of that name.
func (x *index) named(name string) (*vm.Spec, problems) {
	path, err := config.FindIn(x.dir, name)
	if err != nil {
		return nil, problem("", err.Error(), hintOf(err))
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	r := x.read(path)
	if r.spec == nil {
		return nil, unusable(r.why)
	}
	return r.spec, nil
}

// unusable says why a VM's file cannot be used.
func unusable(why vm.Problems) problems {
	var out problems
	for _, p := range why.Fatal() {
		out = append(out, problem("", p.Error(), p.Hint)...)
	}
	return out
}

// ofUnit is the VM whose file names that unit, if it is exactly one.
func (x *index) ofUnit(unit string) (*vm.Spec, problems) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now, err := stampOf(x.dir)
	if err != nil || now != x.names || time.Since(x.looked) > looksEvery || len(x.still(unit)) == 0 {
		x.names, x.looked = now, time.Now()
		x.scan()
	}
	switch paths := x.still(unit); len(paths) {
	case 0:
		return nil, problem("", unit+" is no VM's unit: no file in "+x.dir+" names it", "write unit: "+unit+" into the VM's file; a file that is broken names none: vmcred list")
	case 1:
		return x.files[paths[0]].spec, nil
	default:
		return nil, problem("", unit+" is the unit of more than one VM: "+strings.Join(paths, ", "), "let each VM's file name a unit of its own")
	}
}

// still are the files that name the unit, if they do so now.
func (x *index) still(unit string) []string {
	var out []string
	for _, path := range x.units[unit] {
		if r := x.read(path); r.spec != nil && r.spec.Unit == unit {
			out = append(out, path)
		}
	}
	return out
}

// scan looks through the whole directory.
func (x *index) scan() {
	list, err := config.List(x.dir)
	if err != nil {
		list = nil // none is known: everything is refused
	}
	files := make(map[string]*read, len(list))
	units := make(map[string][]string, len(list))
	for _, l := range list {
		if l.Err != nil || l.Path == "" {
			continue
		}
		r := x.read(l.Path)
		files[l.Path] = r
		if r.spec != nil {
			units[r.spec.Unit] = append(units[r.spec.Unit], l.Path)
		}
	}
	x.files, x.units = files, units
}

// read returns the file as it is now.
func (x *index) read(path string) *read {
	now, err := stampOf(path)
	if old, ok := x.files[path]; ok && err == nil && old.stamp == now {
		return old
	}
	r := &read{stamp: now}
	r.spec, r.why = config.Load(path)
	x.files[path] = r
	if errors.Is(err, fs.ErrNotExist) {
		delete(x.files, path)
	}
	return r
}
