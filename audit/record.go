// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/vmcred/vmcred/secret"
)

// Operation is what was done.
type Operation string

// The operations. Begin and Recover are the log's own.
const (
	Release  Operation = "release"  // a value is about to be handed to a VM
	Refuse   Operation = "refuse"   // it was not handed out
	Generate Operation = "generate" // a value was made
	Read     Operation = "read"     // a person was shown a value
	Rotate   Operation = "rotate"   // a value was replaced
	Rekey    Operation = "rekey"    // a value was encrypted to other recipients
	Export   Operation = "export"   // a value was written out
	Verify   Operation = "verify"   // a value was compared with the guest's
	Begin    Operation = "begin"    // a file of the log begins
	Recover  Operation = "recover"  // what a crash had cut was cut off
)

// Operations are all of them.
func Operations() []Operation {
	return []Operation{Release, Refuse, Generate, Read, Rotate, Rekey, Export, Verify, Begin, Recover}
}

// Decision is whether it was allowed.
type Decision string

// The decisions.
const (
	Allow Decision = "allow"
	Deny  Decision = "deny"
)

// Who asked.
type Who struct {
	UID        int    `json:"uid"`
	PID        int    `json:"pid"`
	Start      uint64 `json:"start"`                // of the process, in clock ticks after the host's boot (proc_pid_stat(5))
	Unit       string `json:"unit,omitempty"`       // of systemd
	Invocation string `json:"invocation,omitempty"` // the unit's, 32 hexadecimal digits
}

// Credential is what was asked for.
type Credential struct {
	Host    string `json:"host"`              // its name on the host
	Guest   string `json:"guest,omitempty"`   // its name in the guest
	Bytes   int    `json:"bytes"`             // of the value
	Channel string `json:"channel,omitempty"` // by which it goes
}

// Entry is what a caller puts on record.
type Entry struct {
	Op         Operation
	By         *Who
	VM         string
	Credential *Credential
	Version    string        // of the value at its source; empty for a file
	Value      *secret.Value // nil, or what the digest is made of
	Decision   Decision
	Reason     string // in words; never a value
}

// Record is one line of the log.
type Record struct {
	Seq        uint64      `json:"seq"` // 1, 2, …
	Time       time.Time   `json:"time"`
	Boot       string      `json:"boot,omitempty"` // the host's boot, a UUID
	Host       string      `json:"host,omitempty"`
	Batch      uint64      `json:"batch"` // 0, 1, …: which key the MAC is made with
	Item       int         `json:"item"`  // 1, 2, … in its batch
	Of         int         `json:"of"`    // records of the batch
	Op         Operation   `json:"op"`
	By         *Who        `json:"by,omitempty"`
	VM         string      `json:"vm,omitempty"`
	Credential *Credential `json:"credential,omitempty"`
	Version    string      `json:"version,omitempty"`
	Digest     string      `json:"digest,omitempty"` // of the value and both names, keyed: 64 hexadecimal digits
	Decision   Decision    `json:"decision,omitempty"`
	Reason     string      `json:"reason,omitempty"`
	Log        string      `json:"log,omitempty"`  // Begin: the log's number, 32 hexadecimal digits
	Lost       int64       `json:"lost,omitempty"` // Recover: bytes that were cut off
	Cut        string      `json:"cut,omitempty"`  // Recover: the first of them
	Prev       Hash        `json:"prev"`           // the record before; zeros for the first
}

// Limits on texts, in bytes, so that no record grows beyond maxLine.
const (
	maxText = 1024
	maxLine = 64 << 10
)

// clip shortens a text to what a record holds.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText-len("…")], "") + "…"
}

// record makes a record of an entry; the digest is made elsewhere.
func (e *Entry) record() Record {
	r := Record{Op: e.Op, VM: clip(e.VM), Version: clip(e.Version), Decision: e.Decision, Reason: clip(e.Reason)}
	if e.By != nil {
		by := *e.By
		by.Unit, by.Invocation = clip(by.Unit), clip(by.Invocation)
		r.By = &by
	}
	if e.Credential != nil {
		c := *e.Credential
		c.Host, c.Guest, c.Channel = clip(c.Host), clip(c.Guest), clip(c.Channel)
		r.Credential = &c
	}
	return r
}

// context binds a digest to what it is the value of. A VM's name holds no slash.
func (e *Entry) context() string {
	name := ""
	if e.Credential != nil {
		name = e.Credential.Host
	}
	return e.VM + "/" + name
}

// Hash is the SHA-256 of a record.
type Hash [32]byte

// String returns 64 hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText returns [Hash.String].
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads 64 hexadecimal digits in lower case.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) {
		return fmt.Errorf("a hash has %d hexadecimal digits, not %d", 2*len(h), len(b))
	}
	var got Hash
	if _, err := hex.Decode(got[:], b); err != nil || got.String() != string(b) {
		return errors.New("a hash is hexadecimal digits in lower case")
	}
	*h = got
	return nil
}

// Head is the end of a log: its last record.
type Head struct {
	Seq  uint64
	Hash Hash
}

// String returns "SEQ:HASH".
func (h Head) String() string { return strconv.FormatUint(h.Seq, 10) + ":" + h.Hash.String() }

// ParseHead reads [Head.String].
func ParseHead(s string) (Head, error) {
	seq, hash, ok := strings.Cut(s, ":")
	var h Head
	var err error
	if h.Seq, err = strconv.ParseUint(seq, 10, 64); !ok || err != nil || h.Seq == 0 {
		return Head{}, errors.New("a head is SEQ:HASH, as in 17:9f86d0…")
	}
	if err := h.Hash.UnmarshalText([]byte(hash)); err != nil {
		return Head{}, err
	}
	if h.String() != s {
		return Head{}, errors.New("a head's number has no sign and no zeros before it")
	}
	return h, nil
}
