// SPDX-License-Identifier: Apache-2.0

// Package launch starts a process that is confined: another user, a Landlock
// domain of its own, no new privileges, no core dump, an empty environment, none of
// our session's keys, no descriptors but those given by name, and an end when this
// process ends.
//
// Landlock (landlock(7)) and no_new_privs (prctl(2)) belong to the thread that
// forks, and so does the parent-death signal: each process therefore has a
// thread of its own here, which forks it, waits for it and ends with it. The
// rest of this program stays unconfined.
package launch
