// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"encoding/json"
	"os"
	"sync"
	"time"
)

// monitor writes events as the real program does: objects over several lines,
// an empty line after each.
type monitor struct {
	mu    sync.Mutex
	to    *os.File // nil: nobody asked
	start time.Time
}

func newMonitor(to *os.File) *monitor { return &monitor{to: to, start: time.Now()} }

type event struct {
	Timestamp  stamp             `json:"timestamp"`
	Source     string            `json:"source"`
	Event      string            `json:"event"`
	Properties map[string]string `json:"properties"`
}

type stamp struct {
	Secs  int64 `json:"secs"`
	Nanos int64 `json:"nanos"`
}

func (m *monitor) say(source, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.to == nil {
		return
	}
	since := time.Since(m.start)
	e := event{Source: source, Event: name, Timestamp: stamp{
		Secs: int64(since / time.Second), Nanos: int64(since % time.Second),
	}}
	if b, err := json.MarshalIndent(e, "", "  "); err == nil {
		_, _ = m.to.Write(append(b, "\n\n"...))
	}
}
