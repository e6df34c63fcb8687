// SPDX-License-Identifier: Apache-2.0

// Package audit is a log of who was given which secret, that can only grow: JSON
// lines, each with the hash of the one before and a message authentication code
// (MAC). [Log.Append] returns when its records are durable. It knows nothing of who
// calls it.
//
// The key of the MAC is replaced by its own hash after every batch of records, and
// the old one is erased: who takes the host over later cannot forge what was
// written before. Whoever keeps an earlier key elsewhere can verify all since then.
//
// Beside the log NAME stand NAME.key, which holds the key of now and is the lock of
// those who write, and NAME.1, NAME.2, …, the files that are full, oldest first.
package audit
