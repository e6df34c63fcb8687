// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	recordName = "record.json"
	recordMax  = 1 << 20 // bytes; a thousand credentials are a tenth of it

	// RecordVersion is the version of the records that this program writes and reads.
	RecordVersion = 1
)

// Record is what runs, as its runner says. It holds names and lengths, no values.
type Record struct {
	Version    int         `json:"version"` // RecordVersion
	VM         string      `json:"vm"`
	File       string      `json:"file"` // the VM's file
	Runner     Process     `json:"runner"`
	VMM        Process     `json:"vmm"`
	VMMUser    int         `json:"vmm_uid"`
	BootID     string      `json:"boot_id"`    // of the host, proc(5): random/boot_id
	Hypervisor string      `json:"hypervisor"` // "qemu"
	HVVersion  string      `json:"hypervisor_version"`
	Accel      string      `json:"accel"`         // "kvm" or "tcg"
	Read       time.Time   `json:"read,omitzero"` // when the values began to be read
	Started    time.Time   `json:"started"`
	Ready      *Ready      `json:"ready,omitempty"` // nil: not yet
	Console    string      `json:"console,omitempty"`
	Delivered  []Delivered `json:"credentials"`
}

// Process is one process of one boot of the host: its number alone is used again.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after the host's boot, proc_pid_stat(5) field 22; 0: not known
}

// Ready is when a VM counted as ready, and by whose word.
type Ready struct {
	At time.Time `json:"at"`
	By string    `json:"by"` // "boot": the VMM runs the guest; "guest": its systemd said so
}

// Proof is whether the guest is known to have read a credential.
type Proof string

// What is known.
const (
	Proven   Proof = "yes"
	Unproven Proof = "no"
	Unknown  Proof = "unknown"
)

// Delivered is one credential that the VMM was given.
type Delivered struct {
	Host    string `json:"host"` // empty: static
	Guest   string `json:"guest"`
	Bytes   int    `json:"bytes"`
	Channel string `json:"channel"`
	Version string `json:"version,omitempty"` // at its source; empty: it has none
	Proven  Proof  `json:"proven"`
	// Now is what its source has by now, as who asks found out; empty: not looked at. It is
	// never in a record.
	Now Now `json:"now,omitempty"`
}

// Now is "same", "changed", "gone" or "unknown".
type Now string

// Self is this process.
func Self() Process { return Describe(os.Getpid()) }

// Describe is a process that runs, and that its caller knows to be the right one.
func Describe(pid int) Process {
	start, _ := startOf(pid) // 0 where /proc hides it
	return Process{PID: pid, Start: start}
}

// Write puts the record into the VM's runtime directory, with mode 0600, in place
// of the one before. Version, runner and boot id are filled in. The record goes
// when the claim is closed.
func (c *Claim) Write(r Record) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	r.Version, r.Runner, r.BootID = RecordVersion, Self(), boot
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(c.dir, recordName+".*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(c.dir, recordName))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// readRecord reads the record in a directory that can be trusted.
func readRecord(dir *os.File) (*Record, error) {
	path := filepath.Join(dir.Name(), recordName)
	fd, err := unix.Openat(int(dir.Fd()), recordName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := checkLock(f); err != nil {
		return nil, err
	}
	if err := checkOpen(f); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, recordMax+1))
	if err != nil {
		return nil, err
	}
	return parseRecord(path, data)
}

func parseRecord(path string, data []byte) (*Record, error) {
	if len(data) > recordMax {
		return nil, &RecordError{Path: path, Why: fmt.Sprintf("is larger than %d bytes", recordMax)}
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, &RecordError{Path: path, Why: "is no record of a VM"}
	}
	if r.Version != RecordVersion {
		return nil, &RecordError{Path: path, Why: fmt.Sprintf("is of version %d, and this program reads %d", r.Version, RecordVersion)}
	}
	if r.Runner.PID <= 0 {
		return nil, &RecordError{Path: path, Why: "names no process"}
	}
	return &r, nil
}

// RecordError says that what lies where a VM's record should be is none.
type RecordError struct{ Path, Why string }

func (e *RecordError) Error() string { return e.Path + " " + e.Why }

// Hint says what to do about it.
func (e *RecordError) Hint() string {
	return "another version of vmcred wrote it, or something else did: the VM's next start replaces it"
}
