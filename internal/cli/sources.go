// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// sourceFlags says where values come from beside the VM's own file.
type sourceFlags struct {
	dir        string
	pairs      []string
	expectList bool
}

func (f *sourceFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.dir, "credentials", "", "read credentials from the files of `DIR`, before $CREDENTIALS_DIRECTORY and the VM's file")
	c.Flags().StringArrayVar(&f.pairs, "load-credential", nil, "read the credential ID from the file PATH, before any other source: `ID:PATH`; may be repeated")
	c.Flags().BoolVar(&f.expectList, "expect-transfer-list", false, "refuse to start without the list that the broker hands over beside the values ("+credential.TransferList+")")
	_ = c.MarkFlagDirname("credentials")
}

// opener returns what opens the sources, first wins: --load-credential,
// --credentials, $CREDENTIALS_DIRECTORY, file: in the VM's file, var: from the store, by
// the broker if there is one.
func (a *app) opener(c *cobra.Command, spec *vm.Spec, f *sourceFlags, broker *hostBroker) (func(context.Context, *secret.Arena) (credential.Source, error), error) {
	pairs := make(map[string]string)
	for _, p := range f.pairs {
		id, path, ok := strings.Cut(p, ":")
		if !ok || path == "" {
			return nil, &usageError{command: c, err: fmt.Errorf("--load-credential %q is not ID:PATH", p)}
		}
		if err := credential.CheckName(id); err != nil {
			return nil, &usageError{command: c, err: fmt.Errorf("--load-credential: %w", err)}
		}
		if _, twice := pairs[id]; twice {
			return nil, &usageError{command: c, err: fmt.Errorf("--load-credential names %s twice", id)}
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		pairs[id] = abs
	}
	files := make(map[string]string)
	for _, cr := range spec.Credentials {
		if cr.Source.Kind == vm.SourceFile {
			files[cr.Host] = cr.Source.Path
		}
	}
	dirs := []string{f.dir, a.getenv("CREDENTIALS_DIRECTORY")}
	if f.dir != "" {
		abs, err := filepath.Abs(f.dir)
		if err != nil {
			return nil, err
		}
		dirs[0] = abs
	}
	return func(ctx context.Context, arena *secret.Arena) (credential.Source, error) {
		var list []credential.Source
		g := &givenSource{}
		add := func(s credential.Source, name string) {
			list = append(list, s)
			if name != "" {
				g.given = append(g.given, name)
			}
		}
		err := func() error {
			if len(pairs) > 0 {
				add(credential.Files(arena, pairs), "--load-credential")
			}
			for _, dir := range dirs {
				if dir == "" {
					continue
				}
				s, err := credential.Directory(arena, dir)
				if err != nil {
					return err
				}
				add(s, s.String())
				compared, err := whole(ctx, arena, s, f.expectList)
				if err != nil {
					return err
				}
				list[len(list)-1] = compared
			}
			if f.expectList && dirs[0] == "" && dirs[1] == "" {
				return &hinted{
					message: "the transfer list is expected, and there is no credentials directory that it could be in",
					hint:    "the unit's LoadCredential= lines make one: vmcred units; or leave --expect-transfer-list out",
				}
			}
			if len(files) > 0 {
				add(credential.Files(arena, files), "")
			}
			vars, err := a.fromStore(ctx, arena, spec, list, broker)
			if vars != nil {
				add(vars, "")
				g.vars = vars
			}
			return err
		}()
		g.Source = credential.Chain(list...)
		if err != nil {
			_ = g.Source.Close() // only read from
			return nil, openError(err)
		}
		return g, nil
	}, nil
}

// givenSource names in messages only what this start was given: the VM's own
// files hold nothing but what the VM's file declares.
type givenSource struct {
	credential.Source
	given []string
	vars  *varSource // nil: no value comes from the store
}

// Version implements credential.Versioned.
func (s *givenSource) Version(name string) string {
	if s.vars == nil {
		return ""
	}
	return s.vars.versions[name]
}

func (s *givenSource) String() string {
	if len(s.given) == 0 {
		return "any source: --load-credential, --credentials and $CREDENTIALS_DIRECTORY are not given"
	}
	return strings.Join(s.given, ", ")
}
