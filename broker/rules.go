// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"fmt"

	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/unit"
	"github.com/vmcred/vmcred/vm"
)

// problems are why something is refused; none: it is not.
type problems []wire.Problem

func problem(credential, message, hint string) problems {
	return problems{{Credential: credential, Message: message, Hint: hint}}
}

// Who may have what: a VM's own unit, what the VM's file declares. ofRunner is the rule for
// our runner, which names the VM.
func (b *Broker) ofRunner(p *peer.Peer, name string) (*vm.Spec, problems) {
	if ps := inUnit(p); len(ps) > 0 {
		return nil, ps
	}
	if err := config.CheckName(name); err != nil {
		return nil, problem("", err.Error(), hintOf(err))
	}
	spec, ps := b.vms.named(name)
	if len(ps) > 0 {
		return nil, ps
	}
	if spec.Unit != p.Unit {
		return nil, problem("", fmt.Sprintf("%s may not have the secrets of the VM %s: they are for %s", p.Unit, name, spec.Unit),
			"unit: in the VM's file names the one unit that gets them; start that: systemctl start "+spec.Unit)
	}
	if spec.Unit == unit.OwnUnit(spec.Name) && p.UID != 0 {
		uid, err := b.o.User(unit.User(spec.Name))
		if err != nil {
			return nil, problem("", fmt.Sprintf("it is not known who user %s is: %v", unit.User(spec.Name), err), "systemctl restart vmcred-user@"+spec.Name)
		}
		if uid != p.UID {
			return nil, problem("", fmt.Sprintf("user %d asks for the VM %s, which is user %s's", p.UID, name, unit.User(spec.Name)),
				"the unit has another User= by a drop-in: systemctl cat "+spec.Unit)
		}
	}
	return spec, invoked(p)
}

// ofLoad is the rule for systemd, which names the unit and the credential: the name is
// anybody's to take, so it counts for nothing but to be compared.
func (b *Broker) ofLoad(p *peer.Peer) (spec *vm.Spec, id string, ps problems) {
	named, id, ok := peer.LoadName(p.Name)
	switch {
	case !ok:
		return nil, "", problem("", "this socket is for systemd's LoadCredential= alone", "a runner asks at "+wire.Socket)
	case p.UID != 0:
		return nil, id, problem(id, fmt.Sprintf("user %d asks as if it were systemd", p.UID), "")
	}
	if ps := inUnit(p); len(ps) > 0 {
		return nil, id, ps
	}
	if named != p.Unit {
		return nil, id, problem(id, fmt.Sprintf("%s asks in the name of %s", p.Unit, named), "")
	}
	spec, ps = b.vms.ofUnit(p.Unit)
	if len(ps) == 0 {
		ps = invoked(p)
	}
	return spec, id, ps
}

func inUnit(p *peer.Peer) problems {
	if p.Unit != "" {
		return nil
	}
	return notAUnit(p)
}

func notAUnit(p *peer.Peer) problems {
	where := "no unit of this host's systemd"
	if slice := login(p); slice != "" {
		where = slice
	}
	return problem("", "who asks is in "+where+", and only a VM's own unit gets its secrets", "systemctl start vmcred@NAME.service; a plain run reads them itself, as root")
}

func invoked(p *peer.Peer) problems {
	if p.Invocation != "" {
		return nil
	}
	return problems{{Message: "systemd does not say which start of " + p.Unit + " this is", Hint: "start it again", Retry: true}}
}

// declared finds what a VM's file says of a credential.
func declared(spec *vm.Spec, host string) *vm.Credential {
	for i := range spec.Credentials {
		if spec.Credentials[i].Host == host {
			return &spec.Credentials[i]
		}
	}
	return nil
}

func names(spec *vm.Spec) []string {
	var out []string
	for _, c := range spec.Credentials {
		out = append(out, c.Host)
	}
	return out
}

// undeclared is why a name is not handed out, or put on record as handed out.
func undeclared(spec *vm.Spec, host string) problems {
	hint := "declare it under credentials: in " + spec.File
	if near := vm.Nearest(host, names(spec)); near != "" {
		hint = "did you mean " + near + "? Else " + hint
	}
	return problem(host, "the VM "+spec.Name+" declares no credential of this name", hint)
}

// loadable is the rule for one name on systemd's way: what the store has, and the list.
func loadable(spec *vm.Spec, id string) problems {
	if id == credential.TransferList {
		return nil
	}
	c := declared(spec, id)
	if c == nil {
		return undeclared(spec, id)
	}
	switch c.Source.Kind {
	case vm.SourceVar:
		return nil
	case vm.SourceFile:
		return problem(id, "it comes from a file, which systemd reads itself", fmt.Sprintf("write LoadCredential=%s:%s instead, as vmcred units %s does", id, c.Source.Path, spec.Name))
	case vm.SourceEncrypted:
		return problem(id, "it comes from an encrypted file, which systemd reads itself", fmt.Sprintf("write LoadCredentialEncrypted=%s:%s instead, as vmcred units %s does", id, c.Source.Path, spec.Name))
	case vm.SourceUnit:
		return problem(id, "its source is the unit's own, and the broker has none for it", "write var: GENERATOR/FILE for it in "+spec.File+", or the path of its file in the unit's LoadCredential=")
	case vm.SourceSOPS:
	}
	return problem(id, "the broker cannot read sops: sources", "see docs/vm-file.md for the sources there are")
}

// fromStore are the credentials that come from the store.
func fromStore(spec *vm.Spec) []vm.Credential {
	var out []vm.Credential
	for _, c := range spec.Credentials {
		if c.Source.Kind == vm.SourceVar {
			out = append(out, c)
		}
	}
	return out
}
