// SPDX-License-Identifier: Apache-2.0

// Package shim turns another program's command line for a hypervisor into a
// specification: what is on it is understood, or refused by its name. It runs nothing
// and opens nothing.
package shim

import (
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// Command is a command line, understood.
type Command struct {
	Program string   // the first argument: a path, or a name to look for on PATH
	Spec    *vm.Spec // without a name and without credentials; what a file would default is left 0
	// APISocket is where the program would have listened for its control, absolute.
	// Nothing opens it: whoever could connect would be told the VM's strings.
	APISocket string
	Notes     []string // what is not as the command line has it, a sentence each
}

// OwnReady says whether the command line has an address for the guest's READY=1,
// where somebody else listens.
func (c *Command) OwnReady() bool {
	for _, s := range c.Spec.Static {
		if s.Name == notifySocket {
			return true
		}
	}
	return false
}

// The names that vm.Spec.Hypervisor has.
const (
	cloudHypervisor = "cloud-hypervisor"
	qemu            = "qemu"
)

// credentialPrefix begins every string that systemd reads as a credential.
const credentialPrefix = "io.systemd.credential"

// notifySocket is the credential in which systemd finds the address for READY=1.
const notifySocket = "vmm.notify_socket"

// Parse reads a whole argument vector, the program first. Relative paths start from
// dir, which is absolute. The problems are all there are, each with the position of
// its argument (the program is 0); none holds the text of a string that is handed
// to the guest. The command is nil if one of them is fatal.
func Parse(argv []string, dir string) (*Command, vm.Problems) {
	if len(argv) == 0 || argv[0] == "" {
		return nil, vm.Problems{{Message: "there is no command line", Hint: "vmcred exec -- cloud-hypervisor …"}}
	}
	p := &parser{dir: dir, extra: map[string]any{}, cmd: &Command{Program: argv[0], Spec: &vm.Spec{Notify: vm.NotifyBoot, Console: vm.Console{Mode: vm.ConsoleOff}}}}
	p.spec = p.cmd.Spec
	switch base := path.Base(argv[0]); {
	case strings.HasPrefix(base, cloudHypervisor):
		p.spec.Hypervisor = cloudHypervisor
		p.cloudHypervisor(argv)
	case strings.HasPrefix(base, "qemu-system-"), base == "qemu-kvm":
		p.spec.Hypervisor = qemu
		p.qemu(argv)
	default:
		p.add(vm.Problem{Field: position(0), Message: quote(base) + " is no hypervisor whose command line is understood", Hint: "it is cloud-hypervisor's, or QEMU's for --print"})
	}
	if len(p.extra) > 0 && len(p.problems.Fatal()) == 0 {
		b, err := json.Marshal(p.extra)
		if err != nil {
			p.add(vm.Problem{Message: err.Error()})
		}
		p.spec.CloudHypervisor.Extra = b
	}
	if len(p.problems.Fatal()) > 0 {
		return nil, p.problems
	}
	return p.cmd, p.problems
}

// parser is one command line in the making.
type parser struct {
	dir      string
	spec     *vm.Spec
	extra    map[string]any // cloud-hypervisor's, for what a specification lacks
	cmd      *Command
	problems vm.Problems
}

func (p *parser) add(pr vm.Problem) { p.problems = append(p.problems, pr) }

func (p *parser) note(format string, args ...any) {
	p.cmd.Notes = append(p.cmd.Notes, fmt.Sprintf(format, args...))
}

// word is one argument and its place.
type word struct {
	index int
	text  string
}

// flag is a flag with its arguments.
type flag struct {
	word
	args []word
	rule rule
}

// fault refuses a flag, or one of its arguments.
func (p *parser) fault(w word, f flag, message, hint string) {
	at := position(w.index)
	p.add(vm.Problem{Field: at + " (" + quote(f.text) + ")", Message: message, Hint: hint})
}

func position(i int) string { return "argument " + strconv.Itoa(i) }

// abs is a path as the program would have found it. It is not cleaned: ".." after a
// link is somewhere else.
func (p *parser) abs(name string) string {
	if name == "" || path.IsAbs(name) {
		return name
	}
	return strings.TrimSuffix(p.dir, "/") + "/" + strings.TrimPrefix(name, "./")
}

// set puts a value at a path of cloud-hypervisor's configuration.
func (p *parser) set(v any, keys ...string) {
	at := p.extra
	for _, k := range keys[:len(keys)-1] {
		next, ok := at[k].(map[string]any)
		if !ok {
			next = map[string]any{}
			at[k] = next
		}
		at = next
	}
	at[keys[len(keys)-1]] = v
}

// quoteMax is how much of a foreign word a message shows, in bytes.
const quoteMax = 60

// quote leaves an ordinary word alone, and shows of any other no more than a
// terminal can take.
func quote(s string) string {
	if i := strings.Index(s, credentialPrefix); i >= 0 {
		return strconv.QuoteToASCII(s[:min(i, quoteMax)]+credentialPrefix) + "…" // and not its value
	}
	plain := strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./") == ""
	if plain && s != "" && len(s) <= quoteMax {
		return s
	}
	if len(s) > quoteMax {
		return strconv.QuoteToASCII(s[:quoteMax]) + "…"
	}
	return strconv.QuoteToASCII(s)
}
