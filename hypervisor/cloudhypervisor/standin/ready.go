// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// patience is how long the probe guest waits for the host to close, if its command
// line does not say.
const patience = 10 * time.Second

// ready writes what the probe guest does with that word (its ready.c): it looks for
// the address in the part of the table that it reads, and reports to it.
func (g *guest) ready(out *bytes.Buffer, words []string) {
	value, found := g.notifySocket(number(words, "cut=", 1<<20))
	if !found {
		fmt.Fprintf(out, "probe: ready none\n")
		return
	}
	var cid, port uint32
	if n, err := fmt.Sscanf(value, "vsock-stream:%d:%d", &cid, &port); n != 2 || err != nil || value != fmt.Sprintf("vsock-stream:%d:%d", cid, port) {
		fmt.Fprintf(out, "probe: ready invalid\n")
		return
	}
	fmt.Fprintf(out, "probe: ready cid=%d port=%d\n", cid, port)
	if g.config["vsock"] == nil {
		fmt.Fprintf(out, "probe: error no-vsock-device\n")
		return
	}
	wait := patience
	if n := number(words, "patience=", 0); n > 0 {
		wait = time.Duration(n) * time.Second
	}
	socket := g.config.at("vsock").text("socket") + "_" + strconv.FormatUint(uint64(port), 10)
	for _, m := range messages(words) {
		end := tell(socket, m, wait)
		fmt.Fprintf(out, "probe: message bytes=%d end=%s text=%s\n", len(m), end, strings.TrimPrefix(probe.WordSay(m), "say="))
		if end == probe.TimedOut {
			return
		}
	}
}

// notifySocket is the first string that sets the address, within so many bytes of
// the structure.
func (g *guest) notifySocket(cut int) (value string, found bool) {
	const text, binary = "io.systemd.credential:vmm.notify_socket=", "io.systemd.credential.binary:vmm.notify_socket="
	at := 5 // the structure's header and its count
	for _, v := range g.config.at("platform").list("oem_strings") {
		s := v.(string)
		s = s[:max(0, min(len(s), cut-at))]
		at += len(v.(string)) + 1
		if value, found = strings.CutPrefix(s, text); found {
			return value, true
		}
		if value, found = strings.CutPrefix(s, binary); found {
			b, _ := base64.StdEncoding.DecodeString(value)
			return string(b), true
		}
	}
	return "", false
}

// messages are what the guest sends, in order.
func messages(words []string) []string {
	all := []string{probe.MessageActive}
	for _, w := range words {
		if text, ok := strings.CutPrefix(w, "say="); ok {
			text, _ = url.PathUnescape(text) // the words of a test are well formed
			all = append(all, text)
		}
	}
	for i := range number(words, "flood=", 0) {
		all = append(all, fmt.Sprintf("STATUS=flood %d", i+1))
	}
	return append(all, probe.MessageReady)
}

// number is the value of a word like "cut=4096".
func number(words []string, key string, unsaid int) int {
	for _, w := range words {
		if text, ok := strings.CutPrefix(w, key); ok {
			n, _ := strconv.Atoi(text)
			return n
		}
	}
	return unsaid
}

// tell sends one message and waits until the host closes. The host does not see
// the guest's end of sending unless the guest says so, and this one does not.
func tell(socket, message string, wait time.Duration) probe.Ending {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return probe.Refused
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte(message)); err != nil {
		return probe.Cut
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		return probe.TimedOut
	}
	return probe.Closed
}
