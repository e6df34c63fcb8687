// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/vmcred/vmcred/secret"
)

// random is n bytes straight from the kernel.
func random(a *secret.Arena, n int) (*secret.Value, error) {
	return a.Make(n, func(b []byte) (int, error) { return len(b), secret.Random(b) })
}

// Key is the key of a batch: it verifies the records of that batch and of all later
// ones. It has to be kept where who may write the log cannot read it.
type Key struct {
	Log   string // the log's number, 32 hexadecimal digits
	Batch uint64
	value *secret.Value
}

// Close wipes the key.
func (k *Key) Close() error {
	k.value.Wipe()
	return nil
}

// Key returns the key of the next batch; that of batch 0 verifies all. The log is
// made if there is none.
func (l *Log) Key(ctx context.Context) (*Key, error) {
	ctx, cancel := context.WithTimeout(ctx, l.o.Wait)
	defer cancel()
	s, err := l.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if s.of > 0 {
		if err := s.turnOn(); err != nil {
			return nil, err
		}
	}
	k := &Key{Log: s.keys.log(), Batch: s.keys.batch}
	err = s.keys.value.Use(func(b []byte) error {
		k.value, err = secret.Make(len(b), func(to []byte) (int, error) { return copy(to, b), nil })
		return err
	})
	return k, err
}

// keyFormat is the first line of a key that is kept elsewhere.
const keyFormat = "vmcred-audit-key 1\n"

// MaxKeyFile is more than a key's text has, in bytes.
const MaxKeyFile = 1 << 10

// Text is the key as it is kept elsewhere.
func (k *Key) Text() (secret.Rope, error) {
	digits, err := secret.Make(2*keyLen, func(to []byte) (int, error) {
		return len(to), k.value.Use(func(b []byte) error {
			hex.Encode(to, b)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	head := fmt.Sprintf("%slog %s\nbatch %d\nkey ", keyFormat, k.Log, k.Batch)
	return secret.Rope{{Text: head}, {Secret: digits}, {Text: "\n"}}, nil
}

var errNoKey = errors.New("this is no key of an audit log: it has four lines, as 'vmcred audit key' prints them")

// ParseKey reads [Key.Text].
func ParseKey(text *secret.Value) (*Key, error) {
	k := &Key{}
	err := text.Use(func(b []byte) error {
		rest, ok := bytes.CutPrefix(b, []byte(keyFormat))
		lines := bytes.SplitN(rest, []byte("\n"), 4) // slices of b: no copy is made
		if !ok || len(lines) != 4 || len(lines[3]) != 0 {
			return errNoKey
		}
		log, ok1 := bytes.CutPrefix(lines[0], []byte("log "))
		batch, ok2 := bytes.CutPrefix(lines[1], []byte("batch "))
		digits, ok3 := bytes.CutPrefix(lines[2], []byte("key "))
		if !ok1 || !ok2 || !ok3 || len(log) != 32 || len(batch) > 20 || len(digits) != 2*keyLen {
			return errNoKey
		}
		var id [16]byte
		if _, err := hex.Decode(id[:], log); err != nil {
			return errNoKey
		}
		var err error
		if k.Batch, err = strconv.ParseUint(string(batch), 10, 64); err != nil {
			return errNoKey
		}
		k.Log = hex.EncodeToString(id[:])
		k.value, err = secret.Make(keyLen, func(to []byte) (int, error) {
			if _, err := hex.Decode(to, digits); err != nil {
				return 0, errNoKey // hex's own error would quote a digit
			}
			return keyLen, nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}
