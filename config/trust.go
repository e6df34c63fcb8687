// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/vmcred/vmcred/internal/trusted"
)

const mayRead = "user %d must be able to read it; a VM's file holds no secret"

// readTrusted reads a regular file of at most limit bytes that nobody but root
// and the running user could have written.
func readTrusted(abs string, limit int) ([]byte, error) {
	fd, err := trusted.File(abs, os.Geteuid())
	if err != nil {
		return nil, notTrusted(abs, err)
	}
	f := os.NewFile(uintptr(fd), abs)
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot read it: %w", errors.Unwrap(err))
	case len(data) > limit:
		return nil, tooLarge()
	}
	return data, nil
}

// notTrusted says it in the words for a file whose path stands before them.
func notTrusted(abs string, err error) error {
	var e *trusted.Error
	if !errors.As(err, &e) {
		return err
	}
	f := &FindError{Message: e.Error(), Tip: e.Tip, cause: e.Err}
	switch {
	case errors.Is(err, fs.ErrPermission):
		f.Message = fmt.Sprintf("cannot open %s: %v", e.Path, e.Err)
		f.Tip = fmt.Sprintf(mayRead, os.Geteuid())
	case e.Path != abs:
	case errors.Is(err, fs.ErrNotExist):
		f.Message, f.Tip = "there is no such file", "check the path; without a / it would be a VM's name"
	case e.What != "":
		f.Message = "this file " + e.What
	}
	return f
}
