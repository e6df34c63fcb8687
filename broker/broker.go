// SPDX-License-Identifier: Apache-2.0

// Package broker hands out the secrets of VMs: to the unit that a VM's file names, each
// value on record first, all values of one start of the unit from one moment. Everything
// else is refused, and said in words. It knows who asks by the kernel's word, and no VMM.
package broker

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/vm"
)

// Recorder is the audit log.
type Recorder interface {
	// Append returns when the entries are durable.
	Append(ctx context.Context, entries ...audit.Entry) error
}

// Settings are what the host's file says by now.
type Settings struct {
	Store   store.Store // nil: there is none
	NoStore error       // why: it is configured, and cannot be used
	Log     Recorder
	LogPath string
	// CheckSources says which of a VM's `file:` sources its unit must not get.
	CheckSources func(*vm.Spec) vm.Problems
}

// Options are what a broker needs to know.
type Options struct {
	VMs   string // the directory of the VMs' files
	State string // the directory for what was given out, which only this user can enter
	// Settings are asked for with every request, so that a change counts at once.
	Settings func() (*Settings, error)
	// Peer says who is at the other end; nil: peer.Of.
	Peer func(*net.UnixConn) (*peer.Peer, error)
	// Invocation is a unit's present one; nil: the host's systemd's.
	Invocation func(unit string) (string, error)
	// User is the number of a VM's own user.
	User    func(name string) (uint32, error)
	Log     *slog.Logger
	Version string // of vmcred

	limits *limits                 // nil: defaultLimits
	uid    func(*peer.Peer) uint32 // of who connected; nil: as the peer says
}

// Broker answers. It may serve several listeners at once.
type Broker struct {
	o      Options
	limits limits
	vms    *index
	starts *starts
	flood  *flood
	gate   *gate
	since  time.Time

	mu      sync.Mutex
	given   uint64 // starts
	refused uint64 // requests
	logErr  error  // of the last append; nil: it worked
}

// limits are what a peer may take of the broker.
type limits struct {
	silent time.Duration // for a request to arrive
	append time.Duration // for a record to be durable
	read   time.Duration // for an answer to be read
	hold   time.Duration // how long values are kept for the next question of a start
	memory int           // bytes of values that are kept so
	grace  time.Duration // for those who are being answered, when it ends
	peers  int           // connections of one unit or login at once; root has no limit
	work   int           // requests that are worked on at once
	loads  int           // of systemd's questions; a broker that is killed takes those along
}

// arenaBytes is what one start's values have at least in locked memory.
const arenaBytes = 8 << 10

func defaultLimits() limits {
	l := limits{
		silent: 5 * time.Second, append: 15 * time.Second, read: 30 * time.Second, hold: 30 * time.Second, grace: 20 * time.Second,
		memory: 64 << 20, peers: 16, work: 64, loads: 16,
	}
	// Where little can be locked, most of it is for what is being worked on.
	var lock unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lock) == nil && lock.Cur/4 < uint64(l.memory) {
		l.memory = int(lock.Cur / 4)
	}
	return l
}

// New returns a broker. It takes up what an earlier one had given out.
func New(o Options) (*Broker, error) {
	if o.Peer == nil {
		o.Peer = peer.Of
	}
	if o.Invocation == nil {
		o.Invocation = func(unit string) (string, error) { return peer.InvocationOf("", unit) }
	}
	b := &Broker{o: o, limits: defaultLimits(), vms: newIndex(o.VMs), flood: newFlood(), since: time.Now()}
	if o.uid == nil {
		b.o.uid = func(p *peer.Peer) uint32 { return p.UID }
	}
	if o.limits != nil {
		b.limits = *o.limits
	}
	b.gate = newGate(b.limits)
	b.starts = newStarts(o.State, b.limits, o.Invocation)
	return b, b.starts.tidy()
}

// ServeRunners answers our own runners until the context ends. It closes the listener.
func (b *Broker) ServeRunners(ctx context.Context, l *net.UnixListener) error {
	return b.serve(ctx, l, nil, func(ctx context.Context, c *net.UnixConn, _ func()) { b.answerRunner(ctx, c) })
}

// ServeLoads answers systemd (LoadCredential= with a socket) until the context ends. It
// closes the listener.
func (b *Broker) ServeLoads(ctx context.Context, l *net.UnixListener) error {
	// Only root can connect, and who is not accepted yet outlives a broker that is killed:
	// the next one answers. So no more are taken than are worked on.
	return b.serve(ctx, l, make(chan struct{}, b.limits.loads), b.answerLoad)
}

// Close wipes what is held.
func (b *Broker) Close() error { return b.starts.close() }

// serve answers each connection. room, if there is one, has to be free before the next is
// accepted; the answer's function gives it back early.
func (b *Broker) serve(ctx context.Context, l *net.UnixListener, room chan struct{}, answer func(context.Context, *net.UnixConn, func())) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	defer l.Close()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		done := func() {}
		if room != nil {
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			done = sync.OnceFunc(func() { <-room })
		}
		c, err := l.AcceptUnix()
		switch {
		case err == nil:
			// Also at the end: closed without a byte it would be an empty value to systemd.
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // too many descriptors, say: those that are open will close
			b.o.Log.Warn("a connection was not accepted", "error", err)
			done()
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		all.Go(func() {
			defer done()
			defer c.Close()
			// Nobody can keep a broker from ending.
			defer context.AfterFunc(ctx, func() { time.AfterFunc(b.limits.grace, func() { _ = c.Close() }) })()
			answer(ctx, c, done)
		})
	}
}

// settings are those of now, or why there are none.
func (b *Broker) settings() (*Settings, problems) {
	s, err := b.o.Settings()
	if err != nil {
		return nil, problem("", err.Error(), hintOf(err))
	}
	return s, nil
}

// append puts entries on record. It fails in words that the asker may read.
func (b *Broker) append(ctx context.Context, s *Settings, entries ...audit.Entry) problems {
	if len(entries) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.limits.append)
	defer cancel()
	err := s.Log.Append(ctx, entries...)
	b.mu.Lock()
	b.logErr = err
	b.mu.Unlock()
	if err != nil {
		b.o.Log.Error("nothing is handed out: it could not be put on record", "error", err, "hint", hintOf(err))
		return problems{{Message: "it cannot be put on record: " + err.Error(), Hint: hintOf(err), Retry: true}}
	}
	return nil
}

func (b *Broker) count(given bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if given {
		b.given++
	} else {
		b.refused++
	}
}

// health is how the broker is.
func (b *Broker) health() *wire.State {
	b.mu.Lock()
	st := &wire.State{Version: b.o.Version, PID: os.Getpid(), Since: b.since, Starts: b.given, Refused: b.refused}
	logErr := b.logErr
	b.mu.Unlock()
	s, ps := b.settings()
	switch {
	case len(ps) > 0:
		st.Fault, st.Hint = ps[0].Message, ps[0].Hint
		return st
	case logErr != nil:
		st.Fault, st.Hint = logErr.Error(), hintOf(logErr)
	case s.NoStore != nil:
		st.Fault, st.Hint = s.NoStore.Error(), hintOf(s.NoStore)
	}
	st.Log = s.LogPath
	if s.Store != nil {
		st.Store = s.Store.String()
	}
	return st
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}
