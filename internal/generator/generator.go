// SPDX-License-Identifier: Apache-2.0

// Package generator is vmcred as a generator of systemd's (systemd.generator(7)): at
// boot and at each daemon-reload it writes what the units of all VMs need. Nothing
// that is wrong with one VM, or with all, may be in the way of a boot.
package generator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/unit"
	"github.com/vmcred/vmcred/vm"
)

// Name is what the program is called when it is the generator.
const Name = "vmcred-generator"

// patience is how long all of it may take to ask a daemon for its version: systemd
// waits for its generators before it does anything else.
const patience = 5 * time.Second

// reasonsMax is how many lines about one VM are kept; `vmcred check` has them all.
const reasonsMax = 20

// Options are where a run reads and writes.
type Options struct {
	VMs   string    // the directory of the VMs' files
	Out   string    // the directory for what is generated (argv[1])
	Units string    // the directory of the template units, where links lead
	Log   io.Writer // what is wrong, a line for each
	// Probe finds the daemon of shares. It is asked once, and only if a VM has any.
	Probe func(context.Context) (unit.Virtiofsd, error)
}

// Main is the generator's main function: argv[1] is the directory for what ranks
// below the administrator's own units. It returns the exit code, of which systemd
// makes a line in its log.
func Main(argv []string) int {
	log := openLog()
	if len(argv) != 2 && len(argv) != 4 {
		fmt.Fprintf(log, "%s is for systemd: it takes one directory, or three\n", Name)
		return 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := Run(ctx, Options{VMs: config.SystemDir, Out: argv[1], Units: templates(argv[0]), Log: log, Probe: Probe})
	if err != nil {
		fmt.Fprintf(log, "the units of VMs are not complete: %v\n", err)
		return 1
	}
	return 0
}

// templates is where our units are, beside the directory of generators that this
// one was started from.
func templates(argv0 string) string {
	if dir := filepath.Dir(argv0); filepath.IsAbs(dir) && filepath.Base(dir) == "system-generators" {
		return filepath.Join(filepath.Dir(dir), "system")
	}
	return "/usr/lib/systemd/system"
}

// Probe looks for virtiofsd as `vmcred units` does.
func Probe(ctx context.Context) (unit.Virtiofsd, error) {
	found, err := virtiofs.Probe(ctx, virtiofs.Options{})
	return unit.Virtiofsd{Path: found.Path, Legacy: found.Legacy}, err
}

// Run writes the files of every VM. A VM that cannot be run gets a drop-in that says
// why. The error is about what could not be written.
func Run(ctx context.Context, o Options) error {
	listed, err := config.List(o.VMs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	g := &generator{Options: o, units: map[string]string{}}
	g.loadHost()
	var specs []*vm.Spec
	for _, l := range listed {
		if spec := g.load(l); spec != nil {
			specs = append(specs, spec)
		}
	}
	// A VM's own unit is no other VM's, whatever the other one's file says.
	own := func(s *vm.Spec) bool { return s.Unit == unit.OwnUnit(s.Name) }
	for _, first := range []bool{true, false} {
		for _, spec := range specs {
			if own(spec) == first {
				g.vm(ctx, spec)
			}
		}
	}
	if len(g.wanted) > 0 {
		g.link("multi-user.target", unit.Target)
	}
	for _, name := range g.wanted {
		g.link(unit.Target, name)
	}
	return errors.Join(g.errs...)
}

type generator struct {
	Options
	units  map[string]string // whose each unit is
	wanted []string          // units that start with the host
	errs   []error
	daemon *daemon

	host         *config.Host // nil: its file is wrong
	hostProblems vm.Problems
}

// daemon is what Probe said.
type daemon struct {
	unit.Virtiofsd
	err error
}

// load reads a VM's file; nil if it cannot be used.
func (g *generator) load(l config.Listed) *vm.Spec {
	if l.Err != nil {
		if config.CheckName(l.Name) != nil { // so no unit is its own
			fmt.Fprintf(g.Log, "%s is left out: %s\n", console.OneLine(l.Path), console.OneLine(l.Err.Error()))
			return nil
		}
		g.refuse(l.Name, vm.Problems{problem(l.Err)})
		return nil
	}
	spec, problems := config.Load(l.Path)
	if fatal := problems.Fatal(); len(fatal) > 0 {
		g.refuse(l.Name, fatal)
		return nil
	}
	return spec
}

// problem makes one of an error that may have a hint.
func problem(err error) vm.Problem {
	p := vm.Problem{Message: err.Error()}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		p.Hint = h.Hint()
	}
	return p
}

// vm writes the files of one VM.
func (g *generator) vm(ctx context.Context, spec *vm.Spec) {
	if of, taken := g.units[spec.Unit]; taken {
		g.refuse(spec.Name, vm.Problems{{
			Pos: vm.Pos{File: spec.File}, Field: "unit", Message: fmt.Sprintf("%s is the unit of the VM %s", spec.Unit, of),
			Hint: "each VM needs a unit of its own",
		}})
		return
	}
	if fatal := slices.Concat(g.sources(spec), sharePlaces(spec)); len(fatal) > 0 {
		g.refuse(spec.Name, fatal)
		return
	}
	var d unit.Virtiofsd
	if len(unit.Served(spec)) > 0 {
		if g.daemon == nil {
			found, err := g.Probe(ctx)
			g.daemon = &daemon{found, err}
		}
		if g.daemon.err != nil {
			p := problem(g.daemon.err)
			p.Pos, p.Field = vm.Pos{File: spec.File}, "shares"
			g.refuse(spec.Name, vm.Problems{p})
			return
		}
		d = g.daemon.Virtiofsd
	}
	files, err := unit.Generated(spec, d)
	if err != nil {
		p := problem(err)
		p.Pos = vm.Pos{File: spec.File}
		var d *unit.DropInError
		if errors.As(err, &d) {
			p = d.Problem()
		}
		g.refuse(spec.Name, vm.Problems{p})
		return
	}
	g.units[spec.Unit] = spec.Name
	for _, f := range files {
		g.write(f)
	}
	if spec.Autostart {
		g.wanted = append(g.wanted, spec.Unit)
	}
}

// loadHost reads the host's file, which is beside the directory of the VMs'.
func (g *generator) loadHost() {
	g.host, g.hostProblems = config.LoadHostIn(filepath.Dir(g.VMs))
	if g.host == nil {
		fmt.Fprintf(g.Log, "the host's file cannot be used: %s\n", console.OneLine(g.hostProblems[0].Error()))
		return
	}
	if f, needed := unit.BrokerFile(g.host.Audit); needed {
		g.write(f)
	}
}

// sources says which of the VM's files its unit must not have. Without the host's file
// nobody knows, which is nothing to a VM that has none.
func (g *generator) sources(spec *vm.Spec) vm.Problems {
	switch {
	case g.host != nil:
		return g.host.CheckSources(spec)
	case slices.ContainsFunc(spec.Credentials, func(c vm.Credential) bool { return c.Source.Kind == vm.SourceFile }):
		return g.hostProblems
	}
	return nil
}

// sharePlaces says whose path somebody could have lead elsewhere: systemd follows it
// whenever the daemon's unit starts. What is not mounted yet is passed over.
func sharePlaces(spec *vm.Spec) vm.Problems {
	c := hostcheck.New(spec)
	for i := range spec.Shares {
		c.SharePlace(i)
	}
	return vm.Problems(c.Problems()).Fatal()
}

// refuse writes the drop-in of a VM that cannot be run. It is started with the host
// whether its file says so or not: what fails is seen, what is left out is missed.
func (g *generator) refuse(name string, problems vm.Problems) {
	fmt.Fprintf(g.Log, "the VM %s is refused: %s\n", name, console.OneLine(problems[0].Error()))
	var lines []string
	for _, p := range problems {
		lines = append(lines, console.OneLine(p.Error()))
		if p.Hint != "" {
			lines = append(lines, "    hint: "+console.OneLine(p.Hint))
		}
	}
	if len(lines) > reasonsMax {
		lines = append(lines[:reasonsMax], "and more: vmcred check "+name)
	}
	own := unit.OwnUnit(name)
	if _, taken := g.units[own]; taken { // by a VM whose file names it; this one has another
		return
	}
	g.units[own] = name
	g.write(unit.Refused(name, lines))
	g.wanted = append(g.wanted, own)
}

func (g *generator) write(f unit.File) {
	path := filepath.Join(g.Out, f.Path)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, f.Text, 0o644)
	}
	if err != nil {
		g.errs = append(g.errs, err)
	}
}

// link makes target want a unit.
func (g *generator) link(target, name string) {
	dir := filepath.Join(g.Out, target+".wants")
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.Symlink(filepath.Join(g.Units, unit.FileOf(name)), filepath.Join(dir, name))
	}
	if err != nil {
		g.errs = append(g.errs, err)
	}
}
