// SPDX-License-Identifier: Apache-2.0

// Package wire is what our runner and the broker say to each other over a unix socket.
//
// The broker speaks first: a Hello, which it sends only after it has found out who is at
// the other end. Then one Request and one Answer, and both close. Each is a frame: its
// length as 4 bytes, big endian, then that many bytes of JSON, at most MaxFrame. Values
// never stand in a frame: they follow it as one memory file (memfd_create(2)) whose
// descriptor goes with the frame's first byte (unix(7), SCM_RIGHTS), one value after the
// other in the order of the frame's credentials.
package wire

import "time"

const (
	// Protocol is the version of what is said here.
	Protocol = 1
	// MaxFrame is the longest frame, in bytes: a thousand credentials with the longest
	// names are half of it.
	MaxFrame = 1 << 20
	// MaxSmall is the longest frame of who can ask for nothing but Health.
	MaxSmall = 4 << 10
	// Socket is where runners find the broker.
	Socket = "/run/vmcred/runner.sock"
	// LoadSocket is where systemd finds it, for LoadCredential= (systemd.exec(5)).
	LoadSocket = "/run/vmcred/broker.sock"
	// Wait is how long a runner waits for a broker that does not answer.
	Wait = 20 * time.Second
)

// Op is what a runner asks for.
type Op string

// The operations.
const (
	// Take hands over the values of the VM that come from the store (var:), once for each
	// start of its unit. They are on record before they leave.
	Take Op = "take"
	// Record puts on record what the runner has from elsewhere and is about to hand to the
	// VMM; the values go with it, for their digests.
	Record Op = "record"
	// Refuse puts on record why the runner does not start the VM.
	Refuse Op = "refuse"
	// Status says what the VM's unit was given, and what the store has by now. Only root
	// may ask.
	Status Op = "status"
	// Health says how the broker is. Everybody may ask.
	Health Op = "health"
)

// Hello is the broker's first frame.
type Hello struct {
	Protocol int `json:"protocol"`
}

// Request is what is asked.
type Request struct {
	Protocol    int              `json:"protocol"`
	Op          Op               `json:"op"`
	VM          string           `json:"vm,omitempty"`
	Credentials List[Credential] `json:"credentials,omitempty"` // Record; the order of the values
	Refusals    List[Refusal]    `json:"refusals,omitempty"`
}

// Credential is one value that goes along.
type Credential struct {
	Host    string `json:"host"`
	Guest   string `json:"guest,omitempty"`
	Bytes   int    `json:"bytes"`
	Channel string `json:"channel,omitempty"` // Record: by which the VMM gets it
	Version string `json:"version,omitempty"` // Take: of its generator
}

// Refusal is why a start was refused.
type Refusal struct {
	Host   string `json:"host,omitempty"`
	Reason string `json:"reason"`
}

// Answer is what comes back. Either Problems says why nothing was done, or the rest is
// what was asked for.
type Answer struct {
	Problems    []Problem    `json:"problems,omitempty"`
	Credentials []Credential `json:"credentials,omitempty"` // Take; the order of the values
	Delivered   []Delivered  `json:"delivered,omitempty"`   // Status
	Health      *State       `json:"health,omitempty"`
}

// Problem is one reason why the broker did not do what it was asked.
type Problem struct {
	Credential string `json:"credential,omitempty"` // its name on the host
	Message    string `json:"message"`
	Hint       string `json:"hint,omitempty"`
	// Retry is true if trying again may help: the log cannot be written, say. Else the
	// VM is refused.
	Retry bool `json:"retry,omitempty"`
}

// Delivered is one credential that a unit's present invocation was given.
type Delivered struct {
	Host    string    `json:"host"`
	Guest   string    `json:"guest"`
	Bytes   int       `json:"bytes"`
	Channel string    `json:"channel,omitempty"`
	Source  string    `json:"source"` // as the VM's file has it: "var", "file", …
	At      time.Time `json:"at"`
	Version string    `json:"version,omitempty"` // var: of its generator
	Now     Now       `json:"now"`
}

// Now is how what was delivered compares with what the source has by now.
type Now string

// What is known.
const (
	Same    Now = "same"
	Changed Now = "changed" // a restart brings another value
	Gone    Now = "gone"    // the source does not have it any more
	Unknown Now = "unknown" // only systemd knows the source
)

// State is how a broker is.
type State struct {
	Version string    `json:"version"` // of vmcred
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
	Store   string    `json:"store,omitempty"` // "the vars in …"; empty: none is configured
	Log     string    `json:"log"`             // the audit log's path
	// Fault is what keeps it from handing out anything, with its hint; empty: nothing.
	Fault   string `json:"fault,omitempty"`
	Hint    string `json:"hint,omitempty"`
	Starts  uint64 `json:"starts"`  // that were given what they asked for
	Refused uint64 `json:"refused"` // requests
}
