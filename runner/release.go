// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"strings"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/secret"
)

// Release is one value that is about to be handed to the VMM.
type Release struct {
	Host, Guest string // its names
	Bytes       int
	Channel     string
	Version     string        // at its source; empty: it has none
	Value       *secret.Value // for a digest; it is the set's
}

// Refusal is why a start was refused.
type Refusal struct {
	Host   string // the credential it is about; empty: none
	Reason string // in words
}

// Recorder puts on record what a VM is given, before it is given.
type Recorder interface {
	// Release returns when the records of all values are durable. On an error no
	// value leaves.
	Release(ctx context.Context, vm string, all []Release) error
	// Refuse records that nothing was released, if it can.
	Refuse(ctx context.Context, vm string, all []Refusal)
}

// errNoRecorder: no audit, no secret.
var errNoRecorder = errors.New("nobody records what is handed over")

// deliver encodes the values, when it is on record that they go.
func (r *run) deliver(ctx context.Context, p *Prepared) (*delivery.Payload, error) {
	if all := releases(p); len(all) > 0 {
		if r.Recorder == nil {
			return nil, errNoRecorder
		}
		if err := r.Recorder.Release(ctx, r.Spec.Name, all); err != nil {
			return nil, err
		}
	}
	return p.Plan.Encode(p.Set)
}

// releases are the secrets of a plan. A set and its plan have the same order.
func releases(p *Prepared) []Release {
	var all []Release
	for i, it := range p.Set.Items() {
		if it.Kind == credential.Secret && i < len(p.Plan.Entries) { // else Encode refuses them all
			all = append(all, Release{
				Host: it.Host, Guest: it.Guest, Bytes: it.Len, Channel: string(p.Plan.Entries[i].Channel),
				Version: p.Versions[it.Host], Value: it.Value(),
			})
		}
	}
	return all
}

// recordRefusal records why a VM with secrets was not started.
func (r *run) recordRefusal(ctx context.Context, err error) {
	if r.Recorder == nil || len(r.Spec.Credentials) == 0 {
		return
	}
	var refused *RefusedError
	if !errors.As(err, &refused) {
		r.Recorder.Refuse(ctx, r.Spec.Name, []Refusal{{Reason: err.Error()}})
		return
	}
	var all []Refusal
	for _, p := range refused.Problems {
		host, _ := strings.CutPrefix(p.Field, "credentials.")
		if host == p.Field {
			host = ""
		}
		all = append(all, Refusal{Host: host, Reason: p.Error()})
	}
	r.Recorder.Refuse(ctx, r.Spec.Name, all)
}
