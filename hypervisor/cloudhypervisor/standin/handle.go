// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// chain is an error with its causes, the outermost first, as the API gives it.
type chain []string

func (c chain) Error() string { return strings.Join(c, ": ") }

// missing are errors that the API answers with 404.
func (c chain) missing() bool {
	last := c[len(c)-1]
	return last == notCreated || last == noConfig
}

const (
	notCreated     = "VM is not created"
	noConfig       = "VM config is missing"
	notRunning     = "VM is not running"
	alreadyCreated = "VM is already created"
)

// failed adds the system's error as Rust writes it.
func failed(err error, what ...string) error {
	text := err.Error()
	var errno interface{ Is(error) bool }
	if errors.As(err, &errno) {
		text = rustText(err)
	}
	return append(chain(what), text)
}

func refused(status int, c chain) answer {
	b, err := json.Marshal([]string(c))
	if err != nil {
		return answer{status: 500, text: true}
	}
	return answer{status: status, body: string(b), text: true}
}

func done() answer { return answer{status: 204} }

// badRequest is what the real program says to a method or body it did not expect.
func badRequest() answer { return refused(400, chain{"Bad Request"}) }

// action is one of the API. Without body it must have none.
type action struct {
	method   string
	hasBody  bool
	anyBody  bool // a body is not looked at
	why      string
	run      func(*vmm) error
	withBody func(*vmm, *request) answer
}

func actions() map[string]action {
	return map[string]action{
		"vmm.ping":        {method: "GET", anyBody: true, withBody: (*vmm).ping},
		"vmm.shutdown":    {method: "PUT", anyBody: true, withBody: (*vmm).vmmShutdown},
		"vm.info":         {method: "GET", anyBody: true, withBody: (*vmm).info},
		"vm.create":       {method: "PUT", anyBody: true, withBody: (*vmm).create},
		"vm.add-net":      {method: "PUT", hasBody: true, withBody: (*vmm).addNet},
		"vm.boot":         {method: "PUT", why: "The VM could not boot", run: (*vmm).boot},
		"vm.shutdown":     {method: "PUT", why: "The VM could not shutdown", run: (*vmm).shutdown},
		"vm.delete":       {method: "PUT", why: "The VM could not be deleted", run: (*vmm).delete},
		"vm.reboot":       {method: "PUT", why: "The VM could not reboot", run: (*vmm).reboot},
		"vm.power-button": {method: "PUT", why: "Error triggering power button", run: (*vmm).powerButton},
	}
}

// handle answers a request. The server calls it for one at a time.
func (v *vmm) handle(r *request) answer {
	name, ok := strings.CutPrefix(r.path, "/api/v1/")
	a, known := actions()[name]
	if !ok || !known {
		for _, real := range []string{"vm.pause", "vm.resume", "vm.resize", "vm.snapshot", "vm.restore", "vm.counters", "vm.nmi", "vm.add-disk", "vm.add-fs", "vm.add-vsock", "vm.remove-device"} {
			if ok && name == real {
				fmt.Fprintf(os.Stderr, "the stand-in does not play %s\n", name)
				return refused(500, chain{"the stand-in does not play " + name})
			}
		}
		return refused(404, chain{"Not Found"})
	}
	if r.method != a.method || !a.anyBody && a.hasBody != (len(r.body) > 0) {
		return badRequest()
	}
	if a.withBody != nil {
		return a.withBody(v, r)
	}
	return apiAnswer(a.why, a.run(v))
}

func apiAnswer(why string, err error) answer {
	var c chain
	switch {
	case err == nil:
		return done()
	case !errors.As(err, &c):
		c = chain{err.Error()}
	}
	status := 500
	if c.missing() {
		status = 404
	}
	return refused(status, append(chain{"Error from API", why}, c...))
}

func (v *vmm) ping(*request) answer {
	body := fmt.Sprintf(`{"build_version":"v%s","version":"%s.0","pid":%d,"features":["kvm"]}`, Version, Version, os.Getpid())
	return answer{status: 200, body: body, text: true}
}

func (v *vmm) vmmShutdown(*request) answer {
	return answer{status: 200, text: true, after: func() { v.leave() }}
}

func (v *vmm) info(*request) answer {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.config == nil {
		return refused(404, chain{"Error from API", "The VM info is not available", notCreated})
	}
	state := "Created"
	if v.guest != nil {
		state = "Running"
	}
	b, err := json.Marshal(map[string]any{
		"config": v.config, "state": state, "memory_actual_size": v.config.at("memory")["size"],
	})
	if err != nil {
		return refused(500, chain{"Internal Server Error"})
	}
	return answer{status: 200, body: string(b), text: true}
}

func (v *vmm) create(r *request) answer {
	if len(r.body) == 0 {
		return answer{status: 400, text: true}
	}
	config, err := decode(r.body, vmSchema())
	if err != nil {
		return refused(400, chain{"Failed to deserialize JSON", err.Error()})
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return apiAnswer("The VM could not be created", v.accept(config.(object)))
}

// addNet takes descriptors in place of a name; they are this process's for good.
func (v *vmm) addNet(r *request) answer {
	decoded, err := decode(r.body, netSchema())
	if err != nil {
		return refused(400, chain{"Failed to deserialize JSON", err.Error()})
	}
	net := decoded.(object)
	delete(net, "fds") // numbers of another process
	if len(r.files) > 0 {
		var fds []any
		for _, f := range r.files {
			fds = append(fds, int(f.Fd()))
		}
		net["fds"] = fds
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.passed = append(v.passed, r.files...)
	return apiAnswer("The network device could not be added to the VM", v.addNetConfig(net))
}
