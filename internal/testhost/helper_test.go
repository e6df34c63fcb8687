// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor/standin"
)

// parts are what this program does inside the container. Each reads its input
// from stdin and returns what it found, both as JSON.
func parts() map[string]func([]byte) (any, error) {
	return map[string]func([]byte) (any, error){
		"attempts": tryAll,
		"search":   searchAll,
		"inject":   injectAll,
		"cut":      cutAll,
		"receive":  receive,
		"who":      servePeers,
		"ask":      askPeers,

		"ask the broker": askBroker,
		roleUnit:         agentIn(roleUnit),
		roleVMM:          agentIn(roleVMM),
		roleRight:        agentIn(roleRight),
		roleRoot:         agentIn(roleRoot),
		"memory":         searchMemory,
		"descriptors":    ownDescriptors,
		"leave an agent": func([]byte) (any, error) { return nil, leaveAgent(roleUnit) },
		"be its runner":  func([]byte) (any, error) { return nil, beItsRunner() },
	}
}

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "part" {
		os.Exit(playPart(os.Args[2]))
	}
	if isTakenOver() {
		fmt.Fprintln(os.Stderr, beTakenOver())
		os.Exit(1)
	}
	if standin.IsCall(os.Args) {
		os.Exit(standin.Main(os.Args[1:], standin.Options{}))
	}
	os.Exit(m.Run())
}

func playPart(name string) int {
	var in bytes.Buffer
	var out any
	_, err := in.ReadFrom(os.Stdin)
	if err == nil {
		out, err = parts()[name](in.Bytes())
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// play runs a part of this program in the container, as root if user is empty.
func play(t *testing.T, c *container, user, part string, in, out any) {
	t.Helper()
	args := []string{self, "part", part}
	if user != "" {
		args = append([]string{
			"setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all",
		}, args...)
	}
	cmd := c.command(args...)
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), &stderr
	got, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(got, out)
	}
	if err != nil {
		t.Fatalf("%s as %q in the container: %v\n%s%s", part, user, err, got, &stderr)
	}
}
