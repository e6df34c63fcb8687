// SPDX-License-Identifier: Apache-2.0

// Package client is a runner's side of the broker: it asks for what a VM is to get, and
// has put on record what the runner has from elsewhere.
package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/secret"
)

// Client asks the broker. It holds nothing open between two questions.
type Client struct {
	socket string
	uid    uint32
	wait   time.Duration
}

// Options are for those who do not ask the host's broker.
type Options struct {
	Socket string        // empty: wire.Socket
	UID    uint32        // whose the broker is
	Wait   time.Duration // for all of one question; 0: wire.Wait
}

// New returns a client. Nothing is asked yet.
func New(o Options) *Client {
	c := &Client{socket: o.Socket, uid: o.UID, wait: o.Wait}
	if c.socket == "" {
		c.socket = wire.Socket
	}
	if c.wait == 0 {
		c.wait = wire.Wait
	}
	return c
}

// FailedError is a broker that did not answer, or that cannot do now what it was asked.
// Trying again may help.
type FailedError struct {
	Message string
	Err     error // the cause; nil: the broker said so
	Do      string
}

// Error says what did not work.
func (e *FailedError) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Hint says what to do about it.
func (e *FailedError) Hint() string { return e.Do }

// Unwrap returns the cause.
func (e *FailedError) Unwrap() error { return e.Err }

// RefusedError is what the broker does not hand out, and why. Trying again does not help.
type RefusedError struct{ Problems []wire.Problem }

// Error is the first reason, and how many more there are.
func (e *RefusedError) Error() string {
	p := e.Problems[0]
	msg := "the broker refuses: "
	if p.Credential != "" {
		msg += p.Credential + ": "
	}
	msg += p.Message
	if n := len(e.Problems) - 1; n > 0 {
		msg += fmt.Sprintf(" (and %d more)", n)
	}
	return msg
}

// Hint is the first reason's.
func (e *RefusedError) Hint() string { return e.Problems[0].Hint }

// Taken is what the broker handed over.
type Taken struct {
	Values   map[string]*secret.Value // by name on the host; the arena's
	Versions map[string]string        // of the values' generators, by name on the host
}

// Take asks for the values of a VM that come from the store. Only its own unit gets them,
// and once for each start. They are on record when this returns. The error is a
// *RefusedError or a *FailedError.
func (c *Client) Take(ctx context.Context, vm string, a *secret.Arena) (*Taken, error) {
	answer, values, err := c.ask(ctx, &wire.Request{Op: wire.Take, VM: vm}, nil, a)
	if err != nil {
		return nil, err
	}
	t := &Taken{Values: map[string]*secret.Value{}, Versions: map[string]string{}}
	for i, cr := range answer.Credentials {
		t.Values[cr.Host], t.Versions[cr.Host] = values[i], cr.Version
	}
	return t, nil
}

// Record returns when it is on record that the runner is about to hand these values to
// the VM; before that none may leave. values are the credentials', in their order.
func (c *Client) Record(ctx context.Context, vm string, credentials []wire.Credential, values []*secret.Value) error {
	m, err := wire.Values(values)
	if err != nil {
		return &FailedError{Message: "the values cannot be shown to the broker", Err: err, Do: hintOf(err)}
	}
	if m != nil {
		defer m.Release() // wiped as far as that is possible
	}
	_, _, err = c.ask(ctx, &wire.Request{Op: wire.Record, VM: vm, Credentials: credentials}, m, nil)
	return err
}

// Refuse has it put on record why the VM was not started.
func (c *Client) Refuse(ctx context.Context, vm string, refusals []wire.Refusal) error {
	refusals = refusals[:min(len(refusals), wire.MaxCredentials)]
	_, _, err := c.ask(ctx, &wire.Request{Op: wire.Refuse, VM: vm, Refusals: refusals}, nil, nil)
	return err
}

// Status asks what a VM's unit was given, and how that compares with what its sources have
// by now. Only root is answered.
func (c *Client) Status(ctx context.Context, vm string) ([]wire.Delivered, error) {
	answer, _, err := c.ask(ctx, &wire.Request{Op: wire.Status, VM: vm}, nil, nil)
	if err != nil {
		return nil, err
	}
	return answer.Delivered, nil
}

// Health asks how the broker is.
func (c *Client) Health(ctx context.Context) (*wire.State, error) {
	answer, _, err := c.ask(ctx, &wire.Request{Op: wire.Health}, nil, nil)
	switch {
	case err != nil:
		return nil, err
	case answer.Health == nil:
		return nil, c.failed(errors.New("it says nothing of itself"))
	}
	return answer.Health, nil
}

// ask sends one request and reads its answer. Without an arena no values may come back.
func (c *Client) ask(ctx context.Context, r *wire.Request, m *secret.Memfd, a *secret.Arena) (*wire.Answer, []*secret.Value, error) {
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	// The context's end, for whatever reason, ends the waiting.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	r.Protocol = wire.Protocol
	answer, values, err := exchange(conn, r, m, a)
	if err != nil {
		if cause := ctx.Err(); cause != nil {
			err = cause
		}
		return nil, nil, c.failed(err)
	}
	if len(answer.Problems) > 0 {
		return nil, nil, problems(answer.Problems)
	}
	return answer, values, nil
}

func exchange(conn *net.UnixConn, r *wire.Request, m *secret.Memfd, a *secret.Arena) (*wire.Answer, []*secret.Value, error) {
	if err := wire.ReceiveHello(conn); err != nil {
		return nil, nil, err
	}
	if err := wire.Send(conn, r, m); err != nil {
		return nil, nil, err
	}
	answer, values, err := wire.ReceiveAnswer(conn, a)
	if err == nil && a != nil && len(values) != len(answer.Credentials) {
		err = errors.New("the values did not come along")
	}
	return answer, values, err
}

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, c.failed(err)
	}
	owner, err := listener(conn)
	if err == nil && owner != c.uid {
		err = &squattedError{c.socket, owner, c.uid}
	}
	if err != nil {
		_ = conn.Close() // nothing was sent
		return nil, c.failed(err)
	}
	return conn, nil
}

// busy is how long to wait when too many others wait to be accepted.
const busy = 20 * time.Millisecond

func (c *Client) connect(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	for {
		nc, err := d.DialContext(ctx, "unix", c.socket)
		switch {
		case err == nil:
			return nc.(*net.UnixConn), nil
		case !errors.Is(err, unix.EAGAIN):
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(busy):
		}
	}
}

// listener is the user who listens: unix(7), SO_PEERCRED of a connection that was made.
func listener(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var (
		cred *unix.Ucred
		cerr error
	)
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, cerr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// squattedError is a socket behind which somebody else listens.
type squattedError struct {
	socket      string
	owner, want uint32
}

func (e *squattedError) Error() string {
	return fmt.Sprintf("user %d listens at %s, and not user %d: nothing was asked", e.owner, e.socket, e.want)
}

const look = "systemctl status vmcred-broker.service vmcred-runner.socket"

// failed gives what went wrong the words for who waits for a VM.
func (c *Client) failed(err error) error {
	var squatted *squattedError
	var version *wire.VersionError
	switch {
	case errors.As(err, &squatted):
		return &FailedError{"somebody else is where the broker should be", err, "find out who that is and how it came there (ss -xlp); then: systemctl restart vmcred-runner.socket"}
	case errors.As(err, &version):
		return &FailedError{"the broker is one of another version of vmcred", err, "restart it: systemctl restart vmcred-broker.service"}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return &FailedError{"there is no broker", err, "start its sockets: systemctl enable --now vmcred-broker.socket vmcred-runner.socket"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return &FailedError{fmt.Sprintf("the broker did not answer within %s", c.wait), nil, look}
	case errors.Is(err, context.Canceled):
		return &FailedError{"nobody waits for the broker any more", err, ""}
	case errors.Is(err, wire.ErrClosed), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return &FailedError{"the broker ended before it had answered", err, look}
	}
	return &FailedError{"the broker's answer is of no use", err, look}
}

// problems is what the broker said. If trying again may help with one, and nothing else is
// wrong, that is a failure.
func problems(all []wire.Problem) error {
	var final []wire.Problem
	for _, p := range all {
		if !p.Retry {
			final = append(final, p)
		}
	}
	if len(final) > 0 {
		return &RefusedError{final}
	}
	return &FailedError{Message: "the broker hands nothing out now: " + all[0].Message, Do: all[0].Hint}
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}
