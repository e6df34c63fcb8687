// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"

	"github.com/vmcred/vmcred/broker/client"
	"github.com/vmcred/vmcred/broker/transfer"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/store/folder"
	"github.com/vmcred/vmcred/vm"
)

// hostBroker is the host's broker, for a runner in a unit of one of the host's VMs. It
// puts on record what did not come from it.
type hostBroker struct {
	client *client.Client
	spec   *vm.Spec
	log    *slog.Logger    // nil until the VM is run
	taken  map[string]bool // on record already
	gone   bool            // it did not answer: it is not waited for again
}

// hostBroker returns nil if this process has the store and a log of its own: root, and an
// ordinary user with VMs of his own.
func (a *app) hostBroker(spec *vm.Spec) *hostBroker {
	if a.uid == 0 || !a.inUnit() || filepath.Dir(spec.File) != config.SystemDir {
		return nil
	}
	return &hostBroker{client: client.New(client.Options{}), spec: spec, taken: map[string]bool{}}
}

// Release implements runner.Recorder.
func (b *hostBroker) Release(ctx context.Context, name string, all []runner.Release) error {
	var said []wire.Credential
	var values []*secret.Value
	for _, r := range all {
		if !b.taken[r.Host] {
			said = append(said, wire.Credential{Host: r.Host, Guest: r.Guest, Bytes: r.Bytes, Channel: r.Channel})
			values = append(values, r.Value)
		}
	}
	if len(said) == 0 {
		return nil
	}
	return b.error(b.client.Record(ctx, name, said, values))
}

// Refuse implements runner.Recorder.
func (b *hostBroker) Refuse(ctx context.Context, name string, all []runner.Refusal) {
	if b.gone {
		return // why is said already
	}
	var said []wire.Refusal
	for _, r := range all {
		said = append(said, wire.Refusal{Host: r.Host, Reason: r.Reason})
	}
	if err := b.client.Refuse(ctx, name, said); err != nil && b.log != nil {
		b.log.Warn("the refusal is not on record", "error", err, "hint", hintOf(err))
	}
}

// error is the broker's for who starts the VM.
func (b *hostBroker) error(err error) error {
	var refused *client.RefusedError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &refused):
		b.gone = true
		return &runner.FailedError{Op: "start", Err: err, Do: hintOf(err)}
	}
	out := &runner.RefusedError{}
	for _, p := range refused.Problems {
		problem := vm.Problem{Pos: vm.Pos{File: b.spec.File}, Message: p.Message, Hint: p.Hint}
		for _, c := range b.spec.Credentials {
			if c.Host == p.Credential {
				problem.Pos, problem.Field = c.Pos, "credentials."+c.Host
			}
		}
		out.Problems = append(out.Problems, problem)
	}
	return out
}

// varSource is what comes from the store: read by the broker, or here.
type varSource struct {
	from     string
	names    map[string]vm.Source
	versions map[string]string
	values   map[string]*secret.Value // by the broker
	snapshot store.Snapshot           // here
	failed   map[string]error         // why there is no value
	arena    *secret.Arena
}

// newVarSource is one for these credentials.
func newVarSource(from string, all []vm.Credential) *varSource {
	s := &varSource{from: from, names: map[string]vm.Source{}, versions: map[string]string{}, failed: map[string]error{}}
	for _, c := range all {
		s.names[c.Host] = c.Source
	}
	return s
}

// fail notes why the credentials for which that holds have no value: each says so, beside
// whatever else is wrong with the VM.
func (s *varSource) fail(err error, holds func(host string, src vm.Source) bool) {
	for host, src := range s.names {
		if s.failed[host] == nil && holds(host, src) {
			// It is not to be looked for elsewhere.
			s.failed[host] = &hinted{message: err.Error(), hint: hintOf(err)}
		}
	}
}

func always(string, vm.Source) bool { return true }

func (s *varSource) String() string { return s.from }

// Names implements credential.Source.
func (s *varSource) Names(context.Context) ([]string, error) {
	return slices.Sorted(maps.Keys(s.names)), nil
}

// Open implements credential.Source.
func (s *varSource) Open(ctx context.Context, name string) (*secret.Value, error) {
	src, ok := s.names[name]
	if !ok {
		return nil, &credential.NoNameError{Name: name, Source: s.from}
	}
	if err := s.failed[name]; err != nil {
		return nil, err
	}
	if s.snapshot == nil {
		return s.values[name], nil
	}
	ref, file := store.ParseVar(src.Path)
	v, err := s.snapshot.Open(ctx, s.arena, ref, file)
	if errors.Is(err, fs.ErrNotExist) { // it is not to be looked for elsewhere
		return nil, &hinted{message: err.Error(), hint: hintOf(err)}
	}
	return v, err
}

// Close implements credential.Source.
func (s *varSource) Close() error {
	if s.snapshot == nil {
		return nil
	}
	return s.snapshot.Close()
}

// fromStore opens what no source before it has, if the VM declares any such var:; nil if
// not. Everything is of one moment.
func (a *app) fromStore(ctx context.Context, arena *secret.Arena, spec *vm.Spec, before []credential.Source, b *hostBroker) (*varSource, error) {
	missing, err := notIn(ctx, spec, before)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	if b != nil {
		return b.take(ctx, arena, missing)
	}
	s := newVarSource("the store", missing)
	f, err := a.hostStore()
	if err != nil {
		s.fail(err, always)
		return s, nil
	}
	s.from, s.arena = f.String(), arena
	return s, s.pin(ctx, f)
}

// hostStore is the store of this user's var: sources.
func (a *app) hostStore() (store.Store, error) {
	host, problems := config.LoadHost(a.uid, a.getenv)
	if host == nil {
		return nil, &runner.RefusedError{Problems: problems}
	}
	vars := a.varsPath(host)
	if vars == "" {
		return nil, noStore(a.uid)
	}
	return folder.Open(vars, a.uid)
}

// pin takes the store's state of now, of the generators that there are.
func (s *varSource) pin(ctx context.Context, f store.Store) error {
	var refs []store.Ref
	for _, name := range slices.Sorted(maps.Keys(s.names)) {
		if ref, _ := store.ParseVar(s.names[name].Path); !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	for len(refs) > 0 {
		snapshot, err := f.Pin(ctx, refs...)
		var none *store.NotFoundError
		switch {
		case err == nil:
			s.snapshot = snapshot
			for name, src := range s.names {
				ref, _ := store.ParseVar(src.Path)
				s.versions[name] = string(snapshot.Version(ref))
			}
			return nil
		case !errors.As(err, &none) || !slices.Contains(refs, none.Ref):
			s.fail(err, always)
			return ctx.Err()
		}
		s.fail(err, func(_ string, src vm.Source) bool { ref, _ := store.ParseVar(src.Path); return ref == none.Ref })
		refs = slices.DeleteFunc(refs, func(r store.Ref) bool { return r == none.Ref })
	}
	return nil
}

// notIn are the var: credentials that no source has.
func notIn(ctx context.Context, spec *vm.Spec, sources []credential.Source) ([]vm.Credential, error) {
	have := map[string]bool{}
	for _, s := range sources {
		names, err := s.Names(ctx)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			have[n] = true
		}
	}
	var out []vm.Credential
	for _, c := range spec.Credentials {
		if c.Source.Kind == vm.SourceVar && !have[c.Host] {
			out = append(out, c)
		}
	}
	return out, nil
}

// take asks the broker, which hands over all that the VM declares.
func (b *hostBroker) take(ctx context.Context, arena *secret.Arena, missing []vm.Credential) (*varSource, error) {
	s := newVarSource("the broker", missing)
	taken, err := b.client.Take(ctx, b.spec.Name, arena)
	var refused *client.RefusedError
	switch {
	case errors.As(err, &refused):
		for _, p := range refused.Problems {
			s.fail(&hinted{message: "the broker refuses it: " + p.Message, hint: p.Hint}, func(host string, _ vm.Source) bool {
				return p.Credential == host || p.Credential == ""
			})
		}
		s.fail(&hinted{message: "the broker hands out all or nothing"}, always)
		return s, nil
	case err != nil:
		return nil, b.error(err)
	}
	s.versions, s.values = taken.Versions, taken.Values
	for _, c := range missing {
		if taken.Values[c.Host] == nil {
			return nil, &runner.FailedError{Op: "start", Err: fmt.Errorf("the broker did not hand over %s", c.Host), Do: "its VM's file changed in between: start it again"}
		}
		b.taken[c.Host] = true
	}
	return s, nil
}

// listed is a credentials directory that came with a transfer list, which is no credential.
type listed struct{ credential.Source }

// Names implements credential.Source.
func (s listed) Names(ctx context.Context) ([]string, error) {
	names, err := s.Source.Names(ctx)
	return slices.DeleteFunc(names, func(n string) bool { return n == credential.TransferList }), err
}

// whole compares what is in a credentials directory with the list that came along, if one
// did or has to: systemd cannot tell a value that is cut from a whole one.
func whole(ctx context.Context, arena *secret.Arena, dir credential.Source, expected bool) (credential.Source, error) {
	text, err := dir.Open(ctx, credential.TransferList)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !expected:
		return dir, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, &hinted{
			message: "the transfer list is expected, and not in " + dir.String(),
			hint:    "give the unit LoadCredential=" + credential.TransferList + ":" + wire.LoadSocket + ", as vmcred units does, or leave --expect-transfer-list out",
		}
	case err != nil:
		return nil, err
	}
	defer text.Wipe()
	list, err := transfer.Parse(arena, text)
	if err != nil {
		return nil, &runner.FailedError{Op: "start", Err: err}
	}
	defer list.Close()
	for _, name := range list.Names() {
		v, err := dir.Open(ctx, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		verr := list.Verify(name, v)
		if v != nil {
			v.Wipe()
		}
		if verr != nil {
			return nil, &runner.FailedError{Op: "start", Err: verr}
		}
	}
	return listed{dir}, nil
}
