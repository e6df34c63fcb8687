// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The parts the stand-in plays, as the VM's name.
const (
	playWell     = "well" // as QEMU does, and powers off after cont
	playDies     = "dies" // complains and ends before the greeting
	playDiesLate = "dies-late"
	playGarbage  = "garbage"
	playDeaf     = "deaf"    // greets and never answers
	playSilent   = "silent"  // never greets
	playRefuses  = "refuses" // refuses cont
	playReboots  = "reboots"
	playGivesUp  = "gives-up" // stops the guest with an internal error
	playTrips    = "trips"    // fails while the guest powers off
	playChatters = "chatters"
	playStays    = "stays" // runs until quit
	playCrashes  = "crashes"
	playFloods   = "floods" // stops the guest again and again, and reads no question
)

const hello = `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}`

type player struct {
	part string
	qmp  *os.File
	in   *bufio.Reader
}

// standIn is a QEMU of which nothing but the process and its QMP is real.
func standIn(args []string) int {
	p := &player{}
	for _, a := range args {
		if name, ok := strings.CutPrefix(a, "guest="); ok {
			p.part = name
		}
		if fd, ok := strings.CutPrefix(a, "socket,id=qmp,fd="); ok {
			n, _ := strconv.Atoi(fd)
			p.qmp = os.NewFile(uintptr(n), "qmp")
		}
	}
	p.in = bufio.NewReader(p.qmp)
	return p.play()
}

func (p *player) say(s string) { fmt.Fprint(p.qmp, s+"\r\n") }

func (p *player) event(name, data string) {
	p.say(fmt.Sprintf(`{"event": %q, "data": {%s}}`, name, data))
}

// next reads a command; ok is false when the driver has left.
func (p *player) next() (command string, id uint64, ok bool) {
	line, err := p.in.ReadString('\n')
	var m struct {
		Execute string `json:"execute"`
		ID      uint64 `json:"id"`
	}
	if err != nil || json.Unmarshal([]byte(line), &m) != nil {
		return "", 0, false
	}
	return m.Execute, m.ID, true
}

func (p *player) play() int {
	switch p.part {
	case playDies:
		fmt.Fprintln(os.Stderr, "qemu-system-x86_64: \x1b[31mno such thing\x07\nqemu-system-x86_64: really")
		return 1
	case playSilent:
		fmt.Fprintln(os.Stderr, "thinking")
		hang()
	case playGarbage:
		p.say("\x00\xffhello")
		hang()
	case playDeaf:
		p.say(hello)
		hang()
	case playChatters:
		for i := range 5000 {
			fmt.Fprintln(os.Stderr, "line", i, strings.Repeat("x", 5000))
		}
	}
	p.say(hello)
	for {
		command, id, ok := p.next()
		if !ok {
			return 3
		}
		if done, code := p.answer(command, id); done {
			return code
		}
	}
}

func (p *player) answer(command string, id uint64) (done bool, code int) {
	ok := fmt.Sprintf(`{"return": {}, "id": %d}`, id)
	switch command {
	case "cont":
		return p.cont(id, ok)
	case "query-status":
		p.say(fmt.Sprintf(`{"return": {"running": false, "status": "internal-error"}, "id": %d}`, id))
		hang()
	case "quit":
		p.say(ok)
		p.event("SHUTDOWN", `"guest": false, "reason": "host-qmp-quit"`)
		return true, 0
	case "system_powerdown":
		p.say(ok)
		p.event("SHUTDOWN", `"guest": true, "reason": "guest-shutdown"`)
		return true, 0
	default:
		if p.part == playDiesLate {
			fmt.Fprintln(os.Stderr, `qemu-system-x86_64: -blockdev x: Failed to get "write" lock`)
			return true, 1
		}
		p.say(ok)
	}
	return false, 0
}

// hang stays until somebody ends the process.
func hang() {
	for {
		_ = unix.Pause()
	}
}

func (p *player) cont(id uint64, ok string) (done bool, code int) {
	if p.part == playRefuses {
		p.say(fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "not \u001b[31mtoday\u0007\nvmcred: all is well"}, "id": %d}`, id))
		return false, 0
	}
	p.event("RESUME", "")
	p.say(ok)
	p.event("SOMETHING_NEW", `"deep": {"er": [1]}`)
	switch p.part {
	case playReboots:
		p.event("SHUTDOWN", `"guest": true, "reason": "guest-reset"`)
		return true, 0
	case playTrips:
		p.event("SHUTDOWN", `"guest": true, "reason": "guest-shutdown"`)
		return true, 7
	case playGivesUp:
		p.event("STOP", "")
	case playFloods:
		for range stops {
			p.event("STOP", "")
		}
		p.event("SHUTDOWN", `"guest": true, "reason": "guest-shutdown"`)
		hang()
	case playCrashes:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		hang()
	case playStays:
	default:
		p.event("SHUTDOWN", `"guest": true, "reason": "guest-shutdown"`)
		return true, 0
	}
	return false, 0
}
