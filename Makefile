# SPDX-License-Identifier: Apache-2.0

PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go
BUILD   := build
UNITS   = $(PREFIX)/lib/systemd

export CGO_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help build demo test soak bench lint man install uninstall clean go deps-demo deps-test

help: ## list the targets
	@echo 'vmcred: start microVMs and hand each one its secrets as it starts'
	@echo
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

go:
	@scripts/check-go $(GO)

deps-demo:
	@scripts/install-deps demo

deps-test:
	@scripts/install-deps test

build: go ## build build/vmcred, a static binary
	$(GO) build -trimpath -ldflags='-s -w' -o $(BUILD)/vmcred ./cmd/vmcred

demo: deps-demo build ## the main job on this machine: a real VM gets its secrets
	$(GO) run ./examples/demo -vmcred $(BUILD)/vmcred

test: go deps-test ## all tests (installs what is missing)
	scripts/test

soak: go deps-test ## hours of fuzzing and hundreds of kills
	scripts/soak

bench: go deps-test build ## speed and memory against baselines, in pairs
	$(GO) run ./bench -vmcred $(BUILD)/vmcred

lint: go deps-test ## gofumpt, go vet, staticcheck, shellcheck
	scripts/lint

man: go ## man pages and completions into build/
	$(GO) run ./internal/man $(BUILD)

install: build man ## install below PREFIX (/usr/local) and DESTDIR
	install -Dm755 $(BUILD)/vmcred $(DESTDIR)$(PREFIX)/bin/vmcred
	install -d $(DESTDIR)$(UNITS)/system $(DESTDIR)$(UNITS)/system-generators
	install -m644 systemd/vmcred* $(DESTDIR)$(UNITS)/system/
	sed -i 's|@BINDIR@|$(PREFIX)/bin|' $(addprefix $(DESTDIR)$(UNITS)/system/,$(notdir $(wildcard systemd/vmcred*)))
	ln -sf ../../../bin/vmcred $(DESTDIR)$(UNITS)/system-generators/vmcred-generator
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m644 $(BUILD)/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -Dm644 $(BUILD)/completion/vmcred.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmcred
	install -Dm644 $(BUILD)/completion/_vmcred $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_vmcred
	install -Dm644 $(BUILD)/completion/vmcred.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vmcred.fish

uninstall: ## remove what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/vmcred $(DESTDIR)$(UNITS)/system-generators/vmcred-generator
	rm -f $(addprefix $(DESTDIR)$(UNITS)/system/,$(notdir $(wildcard systemd/vmcred*)))
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/vmcred.1 $(DESTDIR)$(PREFIX)/share/man/man1/vmcred-*.1
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmcred
	rm -f $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_vmcred
	rm -f $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vmcred.fish

clean: ## remove build/
	rm -rf $(BUILD)
