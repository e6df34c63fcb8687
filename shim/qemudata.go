// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// fwCfgCredentials is where systemd looks for credentials in fw_cfg.
const fwCfgCredentials = "opt/io.systemd.credentials/"

// instead is what to do with a credential that stands on a command line.
const instead = "take it out, and give the value with --load-credential or --credentials"

// qemuSMBIOS takes the strings of type 11. The address for READY=1 is no secret.
func (p *parser) qemuSMBIOS(f flag) {
	w := f.args[0]
	list := qemuOptions(w.text, "")
	if _, file := lookUp(list, "file"); file {
		p.fault(w, f, "file= is refused: "+foreign, "")
		return
	}
	if v, _ := lookUp(list, "type"); v != "11" {
		p.keepFlag(f)
		return
	}
	n := 0
	for _, o := range list {
		switch o.key {
		case "type":
		case "value":
			n++
			p.qemuString(f, w, n, o.value)
		default: // path
			p.fault(w, f, quote(o.key)+"= is refused: "+foreign, "")
		}
	}
}

func (p *parser) qemuString(f flag, w word, n int, s string) {
	address, notify := strings.CutPrefix(s, textForm+notifySocket+"=")
	switch {
	case notify && !slices.ContainsFunc(p.spec.Static, func(st vm.Static) bool { return st.Name == notifySocket }):
		p.spec.Static = append(p.spec.Static, vm.Static{Name: notifySocket, Value: address})
	case strings.HasPrefix(s, credentialPrefix):
		p.fault(w, f, fmt.Sprintf("value= %d is a credential, which every process on the host can read here", n), instead)
	case s == "":
		p.fault(w, f, fmt.Sprintf("value= %d is empty, and every string after it would be lost", n), "")
	default:
		p.spec.OEMStrings = append(p.spec.OEMStrings, s)
	}
}

func (p *parser) qemuFwCfg(f flag) {
	w := f.args[0]
	name, _ := lookUp(qemuOptions(w.text, "name"), "name")
	if strings.HasPrefix(name, fwCfgCredentials) {
		p.fault(w, f, "the credential "+quote(strings.TrimPrefix(name, fwCfgCredentials))+" goes past vmcred's plan", instead)
		return
	}
	p.keepFlag(f)
}

// qemuQMP keeps the socket's path aside: nothing opens it.
func (p *parser) qemuQMP(f flag) {
	w := f.args[0]
	name, isUnix := strings.CutPrefix(w.text, "unix:")
	if !isUnix {
		p.fault(w, f, "this is refused: "+monitors, "a unix socket is left out, and that is all that is taken")
		return
	}
	name, _, _ = strings.Cut(name, ",")
	p.cmd.APISocket = p.abs(name)
	p.note("%s is not opened: %s", f.text, monitors)
}

// qemuDevice takes the vsock, whatever bus it is on.
func (p *parser) qemuDevice(f flag) {
	w := f.args[0]
	list := qemuOptions(w.text, "driver")
	driver, _ := lookUp(list, "driver")
	cid, has := lookUp(list, "guest-cid")
	if !strings.HasPrefix(driver, "vhost-vsock-") || !has {
		p.keepFlag(f)
		return
	}
	n, err := parseUint(cid)
	if err != nil || n < 3 || n > math.MaxUint32 {
		p.fault(w, f, "guest-cid= "+quote(cid)+" is not a number of 3 or more", "")
		return
	}
	p.spec.Vsock = &vm.Vsock{CID: uint32(n)}
	if rest(list, "driver", "guest-cid", "id") != "" {
		p.note("what the vsock device says beside its guest-cid= is left out")
	}
}

func (p *parser) qemuObject(f flag) {
	w := f.args[0]
	list := qemuOptions(w.text, "qom-type")
	kind, _ := lookUp(list, "qom-type")
	_, data := lookUp(list, "data")
	switch {
	case strings.HasPrefix(strings.TrimSpace(w.text), "{"):
		p.fault(w, f, "an object in JSON is refused: "+unread, "write it as TYPE,id=…")
	case kind == "memory-backend-file":
		p.fault(w, f, "memory-backend-file is refused: "+ramInFile, "memory-backend-memfd shares it, too")
	case strings.HasPrefix(kind, "secret") && data:
		p.fault(w, f, "data= is refused: "+onArgv, "file=")
	default:
		p.keepFlag(f)
	}
}
