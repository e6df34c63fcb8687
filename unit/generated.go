// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// generatedName comes before the names that people give their drop-ins: what they
// write comes later, and wins.
const generatedName = "10-vmcred.conf"

// Target is the unit that stands for all VMs.
const Target = "vmcred.target"

// Generated is Files for a generator: the same bytes. The drop-in has a name of its
// own, as one of the same name in /etc would hide it.
func Generated(spec *vm.Spec, d Virtiofsd) ([]File, error) {
	files, err := Files(spec, d)
	if err != nil {
		return nil, err
	}
	files[0].Path = filepath.Join(spec.Unit+".d", generatedName)
	return files, nil
}

// OwnUnit is the instance of our template for a VM.
func OwnUnit(name string) string { return "vmcred@" + name + ".service" }

// FileOf is the name of the file that a unit comes from: its template's, if it has one.
func FileOf(unit string) string {
	if t := templateOf(unit); t != "" {
		return t
	}
	return unit
}

// Refused is the drop-in for a VM that cannot be run: its unit fails as one that
// vmcred refuses (status 78, so it is not started again), says why in its journal,
// and already in its description. The reasons are lines without control characters.
func Refused(name string, reasons []string) File {
	short, _, _ := strings.Cut(strings.Join(reasons, "\n"), "\n")
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Nothing of this VM can be run. Mend it, then: systemctl daemon-reload\n\n[Unit]\n")
	fmt.Fprintf(&b, "Description=VM %s, refused: %s\n", name, strings.ReplaceAll(strings.TrimRight(short, `\ `), "%", "%%"))
	const script = `printf '%s\n' "$@" >&2; exit 78`
	args := append([]string{"/bin/sh", "-c", script, "sh"}, reasons...)
	args = append(args, "mended since then? systemctl daemon-reload")
	fmt.Fprintf(&b, "\n[Service]\nExecStart=\nExecStart=%s\n", command(args))
	return File{filepath.Join(OwnUnit(name)+".d", generatedName), b.Bytes()}
}
