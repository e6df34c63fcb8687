// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/vmcred/vmcred/secret"
)

// makeValues makes the three secrets: base64 of 32, 32 and 64 random bytes
// without a newline, as "openssl rand -base64 N | tr -d '\n'" would.
func (d *demo) makeValues() error {
	d.nonce = rand.Text()
	d.arena = secret.NewArena()
	d.undo = append(d.undo, d.arena.Close)
	d.values = make(map[string]*secret.Value)
	for host, n := range map[string]int{"host-api-key": 32, "host-db-password": 32, "host-jwt-secret": 64} {
		raw, err := d.arena.Make(n, rand.Read)
		if err != nil {
			return err
		}
		v, err := d.arena.Base64(raw)
		if err != nil {
			return err
		}
		raw.Wipe()
		f, err := os.OpenFile(filepath.Join(d.creds, host), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
		if err != nil {
			return err
		}
		if _, err = (secret.Rope{{Secret: v}}).WriteTo(f); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		d.values[host] = v
	}
	for _, host := range slices.Sorted(maps.Keys(d.values)) {
		fmt.Printf("%s/%s  %d bytes\n", d.creds, host, d.values[host].Len())
	}
	return nil
}

// digest is the SHA-256 of the nonce and the value together: what the guest's
// own sha256sum says if it has the same bytes.
func (d *demo) digest(v *secret.Value) string {
	h := sha256.New()
	h.Write([]byte(d.nonce))
	_ = v.Use(func(b []byte) error { h.Write(b); return nil })
	sum := hex.EncodeToString(h.Sum(nil))
	// The state keeps the last block until another one takes its place.
	h.Reset()
	h.Write(make([]byte, sha256.BlockSize-1))
	return sum
}
