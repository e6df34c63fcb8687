// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"context"
	"errors"
	"time"
)

// System is a search of the whole running system by sampling.
type System struct {
	Since   time.Time // as in [Files]: content that did not change since is left out
	Roots   []string  // nil for "/"
	Always  []string  // nil for DefaultAlways
	MaxFile int64     // as in [Files]
}

// System searches every process, descriptor, file, the journal and the
// kernel's log, one after the other.
func (s *Search) System(ctx context.Context, o System) error {
	if o.Roots == nil {
		o.Roots = []string{"/"}
	}
	if o.Always == nil {
		o.Always = DefaultAlways()
	}
	return errors.Join(
		s.Processes(ctx),
		s.Descriptors(ctx),
		s.Files(ctx, Files{Roots: o.Roots, Since: o.Since, Always: o.Always, MaxFile: o.MaxFile}),
		s.Journal(ctx, o.Since),
		s.KernelLog(ctx),
	)
}
