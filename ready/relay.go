// SPDX-License-Identifier: Apache-2.0

package ready

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits of a relay. A guest's PID 1 waits in each notification until we close,
// so all of them are short.
const (
	// MaxPeers is how many connections are read at once. One more makes the oldest
	// of them go: who has something to say has said it by then.
	MaxPeers = 16

	// systemd sends a message with one sendmsg(2) and no newline at its end, then
	// shuts its side down, and waits for our end of file. A VMM passes the message
	// on with one write, but not always the shutdown: a message is whole when
	// nothing follows for this long.
	idle = 25 * time.Millisecond
	// most is the time for all of a message, and for a peer that says nothing.
	most = time.Second

	perSecond = 10  // messages passed on, on average
	burst     = 100 // messages passed on at once
	maxLogged = 32  // kinds of drops that are told
)

// Relay reads a guest's messages, one for each connection, and passes on what is
// allowed. Its methods may be called by many goroutines at once.
type Relay struct {
	forward func(Message)
	log     func(string)

	turn chan struct{} // filled while a message is passed on: they stay in order

	mu     sync.Mutex // guards what follows
	peers  []net.Conn // those being read, the oldest first
	ready  bool       // a READY was passed on
	bucket *rate.Limiter
	told   map[string]bool
	stats  Stats
}

// Stats counts connections by what became of them.
type Stats struct {
	Forwarded int // passed on
	Limited   int // more than a guest may say in that time
	Crowded   int // gone because of too many others at once
	Useless   int // silent, no message, or nothing in it that is for the host
}

// NewRelay returns a relay that hands each message to forward, one at a time and
// in order. A forward that waits makes the guest wait. Log gets a line for each
// kind of thing that is not passed on, once, and must not call the relay; nil:
// nobody does.
func NewRelay(forward func(Message), log func(string)) *Relay {
	if log == nil {
		log = func(string) {}
	}
	return &Relay{
		forward: forward, log: log, turn: make(chan struct{}, 1),
		bucket: rate.NewLimiter(perSecond, burst), told: map[string]bool{},
	}
}

// Stats returns what has happened until now.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// Handle reads one message, closes the connection and passes the message on. It
// never waits for the peer's end of file, nor longer than a second for anything.
//
// Until a first READY everything is read, and that READY is passed on whatever
// came before it: a flood of others cannot hide it. After it, what a guest says
// too often is not even read.
func (r *Relay) Handle(conn net.Conn) {
	defer conn.Close()
	if !r.enter(conn) {
		return
	}
	b, err := receive(conn)
	if !r.leave(conn) {
		return // another one made it go
	}
	if err != nil {
		r.count(&r.stats.Useless, "a guest's message was not read: "+reason(err))
		return
	}
	m, err := Parse(b)
	r.tellDropped(m.Dropped)
	if err != nil || m.IsZero() {
		r.count(&r.stats.Useless, "")
		return
	}
	// Closed before it is passed on, so that the guest goes on; the next message
	// can then be here at once, and waits for its turn.
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	if !r.may(m) {
		return
	}
	_ = conn.Close()
	r.forward(m)
}

// enter makes room for a connection, or says that it is not to be read.
func (r *Relay) enter(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ready && r.bucket.Tokens() < 1 {
		r.limited()
		return false
	}
	if len(r.peers) >= MaxPeers {
		_ = r.peers[0].Close()
		r.peers = slices.Delete(r.peers, 0, 1)
		r.stats.Crowded++
		r.tell("a guest has too many notifications open at once: the oldest was closed")
	}
	r.peers = append(r.peers, conn)
	return true
}

// leave reports whether the connection still had its place.
func (r *Relay) leave(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.peers, conn)
	if i < 0 {
		return false
	}
	r.peers = slices.Delete(r.peers, i, i+1)
	return true
}

// may takes a token for a message; the first READY needs none.
func (r *Relay) may(m Message) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.bucket.Allow() && (r.ready || !m.Ready) {
		r.limited()
		return false
	}
	r.ready = r.ready || m.Ready
	r.stats.Forwarded++
	return true
}

func (r *Relay) limited() {
	r.stats.Limited++
	r.tell(fmt.Sprintf("a guest sends more than %d notifications a second: some are not passed on", perSecond))
}

func (r *Relay) count(n *int, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*n++
	if why != "" {
		r.tell(why)
	}
}

// tell says a thing once. Its caller holds the lock.
func (r *Relay) tell(what string) {
	if len(r.told) < maxLogged && !r.told[what] {
		r.told[what] = true
		r.log(what)
	}
}

// tellDropped names what was not passed on, but for what stock systemd says at
// every boot.
func (r *Relay) tellDropped(keys []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		if !strings.HasPrefix(k, "X_SYSTEMD_") {
			r.tell("a guest's notification is not passed on: " + k + "=")
		}
	}
}

// receive reads one message. A message that the time limit or an error ended is
// given up to its last newline.
func receive(conn net.Conn) ([]byte, error) {
	end := time.Now().Add(most)
	buf := make([]byte, MaxMessage+1) // one more, to know that it is too long
	n, deadline := 0, end
	for n < len(buf) {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return nil, err
		}
		got, err := conn.Read(buf[n:])
		n += got
		switch {
		case errors.Is(err, io.EOF):
			return buf[:n], nil
		case errors.Is(err, os.ErrDeadlineExceeded) && n > 0 && deadline.Before(end):
			return buf[:n], nil
		case err != nil && n > 0:
			return whole(buf[:n]), nil
		case err != nil:
			return nil, err
		case bytes.HasSuffix(buf[:n], []byte("\n")):
			return buf[:n], nil
		}
		if deadline = time.Now().Add(idle); deadline.After(end) {
			deadline = end
		}
	}
	return buf[:n], nil
}

// reason is why nothing was read, without an address that the VMM chose.
func reason(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "it connected and sent nothing"
	}
	return "the connection broke"
}
