// SPDX-License-Identifier: Apache-2.0

// Package leak finds a value where it must not be. It serves the tests and the
// demo program, and knows nothing of virtual machines.
//
//	needles, err := leak.NewNeedles(leak.Needle{Name: "host-api-key", Value: v})
//	defer needles.Close()
//	s := leak.New(needles, leak.Under("credentials directory", dir))
//	err = s.System(ctx, leak.System{Since: started}) // everything below in one call
//	err = s.Processes(ctx)                           // argv, environ and comm of every process and thread
//	err = s.Files(ctx, leak.Files{Roots: []string{"/"}, Since: started})
//	err = s.Descriptors(ctx)                         // memfds and files that are deleted but still open
//	err = s.Journal(ctx, started)                    // what journalctl exports
//	err = s.KernelLog(ctx)                           // /dev/kmsg
//	c, err := s.Memory(ctx, pid)                     // copies in another process's memory
//	w, err := s.Watch(ctx, time.Millisecond, f)      // Processes again and again while f runs
//	t, err := s.Strace(ctx, leak.Trace{Argv: argv})  // exact: every execve and every write of a command
//	s.Report().WriteText(os.Stdout)                  // or json.Marshal(s.Report())
//
// # What is searched for
//
// A value is looked for as it is, in base64 (both alphabets, at its three
// alignments, with or without padding, also broken over lines), hex (both
// cases, also broken over lines), escaped for JSON, URLs and C or Go string
// literals, and as a list of decimal bytes. Values of less than [MinLen] bytes
// or of fewer than [MinDistinct] different bytes are refused: they are found by
// chance. Of values over [WholeLen] bytes the first and last [PartLen] bytes
// are looked for, each on its own.
//
// The needles lie in locked memory, buffers are wiped after use, and no
// finding holds a value: a name or path that contains one is shown with the
// needle's name in its place.
//
// # Sampling and exact
//
// Processes, Files, Descriptors, Journal, KernelLog, Memory and Watch take
// samples: what came and went between two looks is missed. Strace misses
// nothing that a command and its children pass to execve or write with the
// system calls it knows, and says when one of them moved data in a way that no
// system call's arguments show. The report lists what was searched and what
// could not be.
package leak
