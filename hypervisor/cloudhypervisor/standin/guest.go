// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// ending is how a guest leaves off.
type ending int

const (
	poweredOff ending = iota
	reset
	stopped // by the VMM
)

// bootTime is about what the probe guest takes on the real program.
const bootTime = 10 * time.Millisecond

// guest does what the probe guest would with the same configuration.
type guest struct {
	config  object
	serial  io.Writer
	stop    func()
	stopped chan struct{}
	press   func()
	pressed chan struct{}
}

func newGuest(c object, serial io.Writer) *guest {
	g := &guest{config: c, serial: io.Discard, stopped: make(chan struct{}), pressed: make(chan struct{})}
	if serial != nil {
		g.serial = serial
	}
	g.stop = sync.OnceFunc(func() { close(g.stopped) })
	g.press = sync.OnceFunc(func() { close(g.pressed) })
	return g
}

func (g *guest) run() ending {
	cmdline := g.config.at("payload").text("cmdline")
	words := strings.Split(cmdline, " ")
	has := func(w string) bool { return slices.Contains(words, w) }
	var out bytes.Buffer
	if has(probe.WordNoise) {
		for c := range 256 {
			out.WriteByte(byte(c))
		}
	}
	g.report(&out, cmdline)
	if has(probe.WordReady) {
		g.ready(&out, words)
	}
	fmt.Fprintf(&out, "%s\n", probe.Last)
	_, _ = g.serial.Write(out.Bytes()) // a reader that is gone is not the guest's concern
	var until chan struct{}
	switch {
	case has(probe.WordHang):
	case has(probe.WordPanic), has(probe.WordReboot):
		select {
		case <-time.After(bootTime): // a guest that resets for ever floods nobody
			return reset
		case <-g.stopped:
			return stopped
		}
	case has(probe.WordWait):
		until = g.pressed
	default:
		return poweredOff
	}
	select {
	case <-until:
		return poweredOff
	case <-g.stopped:
		return stopped
	}
}

// report writes the lines of the probe guest (its main.c, pvh.c, smbios.c).
func (g *guest) report(out *bytes.Buffer, cmdline string) {
	fmt.Fprintf(out, "\nprobe: begin 1\nprobe: platform cloud-hypervisor\n")
	line, _, _ := strings.Cut(cmdline, "\x00")
	fmt.Fprintf(out, "probe: cmdline at=0x00020000 bytes=%d sha256=%x\n", len(line), sha256.Sum256([]byte(line)))
	if name := g.config.at("payload").text("initramfs"); name != "" {
		initrd, _ := os.ReadFile(name)
		end, _ := g.config.at("memory")["size"].(uint64)
		at := (end - uint64(len(initrd))) &^ 0xfff
		fmt.Fprintf(out, "probe: initrd at=0x%08x bytes=%d sha256=%x\n", at, len(initrd), sha256.Sum256(initrd))
	}
	table := table(g.config.at("platform"))
	fmt.Fprintf(out, "probe: smbios anchor=_SM3_ at=0x000f0000 table=0x000f0018 bytes=%d structures=0\n", len(table))
	walk(out, table)
	fmt.Fprintf(out, "probe: fw_cfg none\n")
}

const (
	oemStrings = 11
	endOfTable = 127
)

// table is the SMBIOS table that cloud-hypervisor makes, mistakes and all: it
// looks neither at the number of strings nor into them.
func table(platform object) []byte {
	var out []byte
	var handle uint16
	add := func(kind byte, rest []byte, strs []string) {
		handle++
		out = append(out, kind, byte(4+len(rest)))
		out = binary.LittleEndian.AppendUint16(out, handle)
		out = append(out, rest...)
		for _, s := range strs {
			out = append(append(out, s...), 0)
		}
		if len(strs) == 0 {
			out = append(out, 0)
		}
		out = append(out, 0)
	}
	add(0, make([]byte, 16), []string{"cloud-hypervisor", "0"})
	add(1, make([]byte, 23), system(platform))
	var oem []string
	for _, s := range platform.list("oem_strings") {
		oem = append(oem, s.(string))
	}
	if len(oem) > 0 {
		add(oemStrings, []byte{byte(len(oem))}, oem)
	}
	add(endOfTable, nil, nil)
	return out
}

func system(platform object) []string {
	strs := []string{"Cloud Hypervisor", "cloud-hypervisor"}
	for i, name := range systemStrings() {
		s := platform.text(name)
		switch {
		case s == "":
		case i < len(strs) && i < 2:
			strs[i] = s
		default:
			strs = append(strs, s)
		}
	}
	return strs
}

// walk reports a table as the probe guest reads it.
func walk(out *bytes.Buffer, t []byte) {
	for len(t) > 0 {
		size, strs := measure(t)
		if size == 0 {
			fmt.Fprintf(out, "probe: error smbios-structure-cut\n")
			return
		}
		handle := binary.LittleEndian.Uint16(t[2:])
		fmt.Fprintf(out, "probe: structure type=%d handle=0x%04x bytes=%d", t[0], handle, size)
		if t[0] == oemStrings && t[1] > 4 {
			fmt.Fprintf(out, " count=%d", t[4])
		}
		fmt.Fprintf(out, " strings=%d\n", len(strs))
		for i, s := range strs {
			if t[0] != oemStrings {
				break
			}
			fmt.Fprintf(out, "probe: string handle=0x%04x index=%d bytes=%d sha256=%x\n", handle, i+1, len(s), sha256.Sum256(s))
		}
		if t[0] == endOfTable {
			return
		}
		t = t[size:]
	}
}

// measure is the size of the first structure, 0 if it does not end, and its strings.
func measure(t []byte) (size int, strs [][]byte) {
	if len(t) < 4 || t[1] < 4 || len(t) < int(t[1])+2 {
		return 0, nil
	}
	at := int(t[1])
	if t[at] == 0 && t[at+1] == 0 {
		return at + 2, nil
	}
	for at < len(t) && t[at] != 0 {
		n := bytes.IndexByte(t[at:], 0)
		if n < 0 {
			return 0, nil
		}
		strs = append(strs, t[at:at+n])
		at += n + 1
	}
	if at >= len(t) {
		return 0, nil
	}
	return at + 1, strs
}
