// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"io"
)

// Event is one line of cloud-hypervisor's event monitor: "vm" "booted".
type Event struct {
	Source string `json:"source"` // "vmm", "vm" or a device
	Name   string `json:"event"`  // "starting", "booted", "rebooting", "shutdown", …
}

// String returns "vm:booted".
func (e Event) String() string { return e.Source + ":" + e.Name }

// maxEvent is how long an event may be, in bytes; they have some 150.
const maxEvent = 64 << 10

// Events calls f for each event until r ends or is no stream of events any more.
func Events(r io.Reader, f func(Event)) {
	from := &bounded{r: r, left: maxEvent}
	for dec := json.NewDecoder(from); ; {
		var e Event
		if dec.Decode(&e) != nil {
			_, _ = io.Copy(io.Discard, r) // the VMM must not wait for a reader
			return
		}
		from.left = maxEvent
		f(e)
	}
}

// bounded ends a stream in which one event does not end.
type bounded struct {
	r    io.Reader
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
