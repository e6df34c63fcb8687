// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vmcred/vmcred/secret"
)

// A line is the record's JSON with two more keys at its end: the MAC covers all
// before it, the hash covers all before it and the MAC.
const (
	macKey  = `,"mac":"`
	hashKey = `","hash":"`
	lineEnd = `"}`
	hexLen  = 64
	sealLen = len(macKey) + hexLen + len(hashKey) + hexLen + len(lineEnd)
)

// appender lets an encoder write behind what is there already.
type appender []byte

func (a *appender) Write(b []byte) (int, error) {
	*a = append(*a, b...)
	return len(b), nil
}

// seal appends the record's line and returns the record's hash. On an error b is
// what is returned.
func seal(b []byte, r *Record, k *ratchet) ([]byte, Hash, error) {
	at, w := len(b), appender(b)
	if err := json.NewEncoder(&w).Encode(r); err != nil {
		return b, Hash{}, fmt.Errorf("record %d: %w", r.Seq, err)
	}
	line := w[:len(w)-len("}\n")]
	mac := k.mac(line[at:])
	if mac.IsZero() {
		return b, Hash{}, secret.ErrWiped
	}
	line = append(append(line, macKey...), mac.String()...)
	hash := Hash(sha256.Sum256(line[at:]))
	line = append(append(line, hashKey...), hash.String()...)
	line = append(line, lineEnd+"\n"...)
	if n := len(line) - at; n > maxLine {
		return b, Hash{}, fmt.Errorf("record %d would have %d bytes, more than %d", r.Seq, n, maxLine)
	}
	return line, hash, nil
}

// ErrEdited is a line that is not what its own hash says.
var ErrEdited = errors.New("it is not what its own hash says: it was edited")

// ErrNoRecord is a line that is none of the log's.
var ErrNoRecord = errors.New("this line is no record of an audit log")

// sealed is a record as it stands in its line.
type sealed struct {
	Record
	hash Hash
	mac  secret.Digest
	body []byte // what the MAC covers
}

// unseal reads a line without its newline. With ErrEdited the record is what the
// line says now.
func unseal(line []byte) (sealed, error) {
	var s sealed
	body, mac, hash, ok := split(line)
	if !ok {
		return s, ErrNoRecord
	}
	if err := json.Unmarshal(append(bytes.Clone(body), '}'), &s.Record); err != nil {
		return sealed{}, ErrNoRecord
	}
	var m Hash
	if s.hash.UnmarshalText(hash) != nil || m.UnmarshalText(mac) != nil {
		return sealed{}, ErrNoRecord
	}
	if s.Seq == 0 || s.Item < 1 || s.Of < s.Item {
		return sealed{}, ErrNoRecord
	}
	s.mac, s.body = secret.Digest(m), bytes.Clone(body)
	if Hash(sha256.Sum256(line[:len(body)+len(macKey)+hexLen])) != s.hash {
		return s, ErrEdited
	}
	return s, nil
}

// split takes a line apart without understanding it.
func split(line []byte) (body, mac, hash []byte, ok bool) {
	if len(line) < sealLen || len(line) >= maxLine {
		return nil, nil, nil, false
	}
	body, rest := line[:len(line)-sealLen], line[len(line)-sealLen:]
	take := func(key string, n int) []byte {
		if ok = ok && bytes.HasPrefix(rest, []byte(key)); !ok {
			return nil
		}
		got := rest[len(key) : len(key)+n]
		rest = rest[len(key)+n:]
		return got
	}
	ok = true
	mac, hash = take(macKey, hexLen), take(hashKey, hexLen)
	take(lineEnd, 0)
	return body, mac, hash, ok
}
