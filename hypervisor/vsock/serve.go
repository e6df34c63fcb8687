// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// maxHandlers is how many connections of one guest are handled at once.
	maxHandlers = 64
	// patience is how long one more waits for its turn before it is closed. It is
	// short: a VMM's thread may wait with it.
	patience = 100 * time.Millisecond
	// pause is between two tries when there is, say, no descriptor left.
	pause = 50 * time.Millisecond
)

// Serve hands each connection to handle in a goroutine of its own, at most 64 at
// once, and closes it afterwards. It returns when l is closed and every handle
// has returned.
func Serve(l net.Listener, handle func(net.Conn)) {
	var running sync.WaitGroup
	defer running.Wait()
	free := make(chan struct{}, maxHandlers)
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-time.After(pause)
			continue
		}
		if !take(free) {
			_ = conn.Close()
			continue
		}
		running.Go(func() {
			defer func() { <-free }()
			defer conn.Close()
			handle(conn)
		})
	}
}

func take(free chan<- struct{}) bool {
	select {
	case free <- struct{}{}:
		return true
	default:
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case free <- struct{}{}:
		return true
	case <-late.C:
		return false
	}
}
