// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/vm"
)

// maxFile is the largest unit file read, in bytes; larger ones are skipped
// with a warning.
const maxFile = 1 << 20

// nixStore is the one directory outside of those given that links lead into:
// a NixOS guest's units are links there, and host and guest have the same one.
const nixStore = "/nix/store"

// Unit is one unit of a guest with its drop-ins applied.
type Unit struct {
	Name        string
	Assignments []Assignment // the unit's file, then its drop-ins, in systemd's order
}

// Requests lists the credentials the unit asks for.
func (u *Unit) Requests() []Request { return Requests(u.Name, u.Assignments) }

// Load reads the units in paths: directories, as /etc/systemd/system and
// /usr/lib/systemd/system of an image, and single unit files. Where two have a
// unit or a drop-in of the same name, the earlier path wins, as with systemd.
//
// A link that leads out of the paths (and not into /nix/store) is not
// followed, because its target is a path of the guest: where another unit of
// its target's name is among the paths it is an alias, else a note says so.
func Load(paths []string) ([]*Unit, vm.Problems) {
	l := loader{files: map[string]string{}}
	for _, p := range paths {
		l.add(p)
	}
	l.addInstances()
	var units []*Unit
	for _, name := range l.names {
		if u := l.unit(name); u != nil {
			units = append(units, u)
		}
	}
	return units, l.problems
}

type loader struct {
	roots    []string          // the paths with their links resolved
	dirs     []string          // those of them that are directories
	names    []string          // of units, sorted at the end of add
	files    map[string]string // unit name → its file; "" is masked
	problems vm.Problems
}

func (l *loader) say(sev vm.Severity, path, format string, args ...any) {
	l.problems = append(l.problems, vm.Problem{Severity: sev, Pos: vm.Pos{File: path}, Message: fmt.Sprintf(format, args...)})
}

// add takes in a directory or a file that the VM's file names.
func (l *loader) add(path string) {
	real, err := filepath.EvalSymlinks(path)
	var st fs.FileInfo
	if err == nil {
		st, err = os.Stat(real)
	}
	switch {
	case err != nil:
		l.problems = append(l.problems, vm.Problem{
			Pos: vm.Pos{File: path}, Field: "guest.units", Message: "cannot read the guest's units: " + cause(err).Error(),
			Hint: "units: names directories or files on the host, such as those of the image's tree",
		})
		return
	case !st.IsDir():
		l.roots = append(l.roots, real)
		l.addUnit(filepath.Base(path), real)
		return
	}
	l.roots, l.dirs = append(l.roots, real), append(l.dirs, real)
	entries, err := os.ReadDir(real)
	if err != nil {
		l.say(vm.Error, path, "cannot read the guest's units: %v", cause(err))
		return
	}
	for _, e := range entries {
		l.addUnit(e.Name(), filepath.Join(real, e.Name()))
	}
}

func (l *loader) addUnit(name, path string) {
	if _, have := l.files[name]; have || execSection(name) == "" {
		return
	}
	l.files[name] = path
	l.names = append(l.names, name)
	slices.Sort(l.names)
}

// addInstances adds foo@bar.service where only its drop-in directory is there.
func (l *loader) addInstances() {
	for _, dir := range l.dirs {
		entries, _ := os.ReadDir(dir) // read once already
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), ".d")
			template := templateOf(name)
			if !ok || template == "" || l.files[template] == "" {
				continue
			}
			l.addUnit(name, l.files[template])
		}
	}
}

// templateOf returns foo@.service for foo@bar.service, or "".
func templateOf(name string) string {
	prefix, rest, ok := strings.Cut(name, "@")
	dot := strings.LastIndexByte(rest, '.')
	if !ok || dot <= 0 {
		return ""
	}
	return prefix + "@" + rest[dot:]
}

// unit reads one unit; nil if it is masked, an alias, or cannot be read.
func (l *loader) unit(name string) *Unit {
	main, ok := l.read(l.files[name])
	if !ok {
		return nil
	}
	u := &Unit{Name: name, Assignments: main}
	for _, path := range l.dropIns(name) {
		as, _ := l.read(path)
		u.Assignments = append(u.Assignments, as...)
	}
	return u
}

// dropIns finds a unit's drop-ins in the order they apply: by file name, each
// name once, from the first directory that has it (systemd.unit(5)).
func (l *loader) dropIns(name string) []string {
	chosen := map[string]string{}
	for _, d := range dropInDirs(name) {
		for _, dir := range l.dirs {
			entries, err := os.ReadDir(filepath.Join(dir, d))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				l.say(vm.Warning, filepath.Join(dir, d), "cannot read these drop-ins: %v", cause(err))
			}
			for _, e := range entries {
				if _, have := chosen[e.Name()]; !have && strings.HasSuffix(e.Name(), ".conf") {
					chosen[e.Name()] = filepath.Join(dir, d, e.Name())
				}
			}
		}
	}
	var out []string
	for _, base := range sortedKeys(chosen) {
		out = append(out, chosen[base])
	}
	return out
}

// dropInDirs lists the names of a unit's drop-in directories, the most
// particular first: its own, its template's, its prefixes' (foo-.service.d for
// foo-bar.service) and its type's.
func dropInDirs(name string) []string {
	dot := strings.LastIndexByte(name, '.')
	stem, suffix := name[:dot], name[dot:]
	var out []string
	for _, s := range []string{stem, strings.TrimSuffix(templateOf(name), suffix)} {
		if s == "" || slices.Contains(out, s+suffix+".d") {
			continue
		}
		out = append(out, s+suffix+".d")
		prefix, at, isAt := strings.Cut(s, "@")
		_ = at
		for i := strings.LastIndexByte(prefix, '-'); i > 0; i = strings.LastIndexByte(prefix[:i], '-') {
			tail := ""
			if isAt {
				tail = s[len(prefix):]
			}
			if d := prefix[:i+1] + tail + suffix + ".d"; i+1 < len(prefix) || isAt {
				out = append(out, d)
			}
		}
	}
	return append(out, suffix[1:]+".d")
}

// read parses one file; false if it is masked, elsewhere, or cannot be read.
func (l *loader) read(path string) ([]Assignment, bool) {
	real, err := filepath.EvalSymlinks(path)
	if l.isAlias(path) || real == "/dev/null" {
		return nil, false
	}
	if err == nil && !l.inside(real) {
		l.say(vm.Note, path, "not read: it is a link out of the directories of units:, to %s", real)
		return nil, false
	}
	var data []byte
	if err == nil {
		data, err = readFile(real)
	}
	if err != nil {
		l.say(vm.Warning, path, "not read: %v", cause(err))
		return nil, false
	}
	if len(data) == 0 {
		return nil, false // an empty file masks, too
	}
	as, _ := Parse(path, data) // what systemd skips in a guest's unit is the guest's affair
	return as, true
}

// isAlias is true for a link to another name that is among the units.
func (l *loader) isAlias(path string) bool {
	target, err := os.Readlink(path)
	if err != nil || filepath.Base(target) == filepath.Base(path) {
		return false
	}
	_, have := l.files[filepath.Base(target)]
	return have
}

func (l *loader) inside(real string) bool {
	for _, root := range append([]string{nixStore}, l.roots...) {
		if real == root || strings.HasPrefix(real, strings.TrimSuffix(root, "/")+"/") {
			return true
		}
	}
	return false
}

// readFile reads a regular file; O_NONBLOCK keeps a pipe from hanging it.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch st, err := f.Stat(); {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, errors.New("it is no regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	return data, err
}

// cause is the error without the path, which the message has already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
