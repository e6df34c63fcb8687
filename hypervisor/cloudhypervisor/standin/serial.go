// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// openSerial opens where the guest's serial port leads, if anywhere.
func (v *vmm) openSerial() error {
	if v.serial != nil {
		return nil
	}
	console := v.config.at("console")["mode"]
	if console != "Off" && console != "Null" && console != "Tty" {
		return chain{fmt.Sprintf("the stand-in does not play a console with mode %v", console)}
	}
	serial := v.config.at("serial")
	var err error
	switch serial["mode"] {
	case "Off", "Null", "Tty":
	case "File":
		var f *os.File
		if f, err = os.OpenFile(serial.text("file"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err == nil {
			v.serial = f
		}
	case "Socket":
		var s *serialSocket
		if s, err = listenSerial(serial.text("socket")); err == nil {
			v.serial = s
		}
	default:
		return chain{fmt.Sprintf("the stand-in does not play a serial port with mode %v", serial["mode"])}
	}
	if err != nil {
		return failed(err, "Error creating console devices", "Error creating console device")
	}
	return nil
}

func (v *vmm) closeSerial() {
	if v.serial != nil {
		_ = v.serial.Close()
		v.serial = nil
	}
}

// serialSocket is a serial port with one client at a time. It keeps what the guest
// writes while there is none, and gives that to the next. Its file goes with it,
// and stays behind a kill.
type serialSocket struct {
	l net.Listener

	mu     sync.Mutex // guards what follows
	client net.Conn
	kept   []byte
}

// serialKept is how much of the guest's output waits for a client, in bytes.
const serialKept = 1 << 20

func listenSerial(path string) (*serialSocket, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	s := &serialSocket{l: l}
	go s.serve()
	return s, nil
}

func (s *serialSocket) serve() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.replace(c)
		go func() {
			_, _ = io.Copy(io.Discard, c) // what is typed; this guest reads nothing
			s.hungUp(c)
		}()
	}
}

// replace: a second client takes the place of the first.
func (s *serialSocket) replace(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		_ = s.client.Close()
	}
	s.client = c
	_, _ = c.Write(s.kept)
	s.kept = nil
}

func (s *serialSocket) hungUp(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = c.Close()
	if s.client == c {
		s.client = nil
	}
}

// Write never fails: a guest's port takes what it writes.
func (s *serialSocket) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		_, _ = s.client.Write(b)
		return len(b), nil
	}
	s.kept = append(s.kept, b...)
	s.kept = s.kept[max(0, len(s.kept)-serialKept):]
	return len(b), nil
}

func (s *serialSocket) Close() error {
	err := s.l.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		_ = s.client.Close()
	}
	return err
}
