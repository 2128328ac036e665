# bpfnet: `make demo` builds and runs the main job, `make test` installs what the
# tests need and passes them all. Everything else: `make help`.

CLANG ?= clang-19
STRIP ?= llvm-strip-19

# sudo drops the caller's PATH; Go is looked for where people put it.
GO ?= $(shell command -v go 2>/dev/null || for d in /usr/local/go/bin /usr/lib/go/bin /usr/lib/go-1.2[5-9]/bin /snap/bin $(if $(SUDO_USER),~$(SUDO_USER)/go/bin ~$(SUDO_USER)/sdk/go*/bin ~$(SUDO_USER)/.local/go/bin); do [ -x $$d/go ] && echo $$d/go && break; done)

export BPF2GO_CC = $(CLANG)
export BPF2GO_STRIP = $(STRIP)
export CGO_ENABLED = 0
# What is built does not depend on where: another clone finds it in Go's cache.
export GOFLAGS += -trimpath

.PHONY: help all build demo test unit generate fmt vet lint fresh deps conformance differences docker-rows soak lab-shell verifier cost vm vm-deps bench bench-deps insns readme deb clean test-engines test-engines-next engines-deps packages

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

all: build

go-found:
	@[ -n "$(GO)" ] || { echo "bpfnet: no Go found in PATH or the usual places; install Go 1.25 or newer, or say GO=/path/to/go" >&2; exit 1; }

build: go-found ## the binary, ./bpfnet
	$(GO) build -o bpfnet ./cmd/bpfnet

demo: build ## the main job, explained line by line; leaves nothing behind
	./bpfnet demo

# Rows wait much of their time, for the kernel or for what must not come: some run at
# once, beside another package. Tests that measure time run after all others, alone.
# Vetting is make lint's.
TIMED = ^Test(Bar.*|Cost.*|E4Rate|AnswersAtOnce|ManyPorts)$$
# Memory is there, and collecting garbage takes time: package control's tests 64 s instead of 72.
AT_ONCE = GOGC=400 $(GO) test -vet=off -count=1 -timeout 14m -skip '$(TIMED)'
ALONE = $(GO) test -vet=off -count=1 -timeout 14m -p 1 -run '$(TIMED)'
# With Docker's containers, here; make docker-rows has all.
SOME_ROWS = ^Test(A1|A2|A3|A10|B9|C1|C4|C5|D1|D4)$$
ENGINES = ./tests/docker ./tests/dockerdriver
LIGHTER = ./tests/systemd ./tests/cni ./tests/podman

test: deps go-found ## everything: unit, datapath, conformance, end to end (root)
	$(AT_ONCE) -p 2 -parallel 4 ./...
	$(ALONE) ./tests/conformance

# An Engine keeps both CPUs busy.
test-engines: engines-deps go-found ## other container engines, the real programs, on our packet path (root)
	BPFNET_ENGINES=1 $(AT_ONCE) -p 1 $(ENGINES)
	BPFNET_ENGINES=1 $(AT_ONCE) -p 2 -parallel 4 $(LIGHTER)
	BPFNET_ENGINES=1 $(ALONE) $(ENGINES) $(LIGHTER)
	$(GO) run ./tests/conformance/run -cast docker -run '$(SOME_ROWS)'

test-engines-next: engines-deps go-found ## the same with Debian 13's engines, from the machine's own mirror into the cache (root)
	sh scripts/next env BPFNET_ENGINES=next $(GO) test -count=1 -p 1 -timeout 20m ./tests/docker ./tests/dockerdriver ./tests/podman
	sh scripts/next env BPFNET_ENGINES=next $(GO) test -count=1 -run Containerd ./tests/cni

engines-deps:
	@NEED="dockerd:docker.io docker-compose:docker-compose podman:podman conmon:conmon runc:runc /usr/lib/cni/host-local:containernetworking-plugins busybox:busybox-static nft:nftables iptables:iptables systemctl:systemd dbus-daemon:dbus" sh scripts/deps

unit: go-found ## the packages' own tests
	$(GO) test -count=1 ./control/... ./maps/... ./loader/... ./cmd/...

generate: ## bpf/*.c to loader/bpf_bpfel.{go,o}
	$(GO) generate .

fmt: ## gofmt
	gofmt -l -w $$(git ls-files '*.go')

# Each of them only adds files.
TAGS = kernellab,man
vet: go-found
	$(GO) vet -tags $(TAGS) ./...

lint: go-found vet ## vet, staticcheck, gofmt
	$(GO) tool staticcheck -tags $(TAGS) ./...
	@out=$$($(dir $(GO))gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not formatted: $$out" >&2; exit 1; }

fresh: generate ## the committed objects are what the C gives
	@git diff --exit-code --stat -- loader/bpf_bpfel.go loader/bpf_bpfel.o || { echo "generated code is stale: run make generate" >&2; exit 1; }

packages: ## all that anything here needs, installed: for CI
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory engines-deps
	@$(MAKE) --no-print-directory vm-deps

deps: ## what the tests need, from Debian's or Ubuntu's packages
	@sh scripts/deps

verifier: go-found ## verified instructions per program, against the table; the log where one is refused
	$(GO) run ./tests/verifier $(PROG)

cost: go-found ## an established packet, here and at another commit: make cost OLD=HEAD~1
	$(GO) run ./tests/cost $(OLD)

bench: bench-deps build ## side by side with iptables, docker-proxy and the host's limit, most of an hour; writes bench.svg, bench.json
	DOCKER_PROXY="$$(sh scripts/docker-proxy)" ./bpfnet bench --all --rounds $(or $(ROUNDS),12) --time $(or $(TIME),500ms) --svg bench.svg --json bench.json $(BENCHFLAGS)

bench-deps:
	@NEED="iperf3:iperf3 wrk:wrk nginx:nginx-light iptables:iptables" sh scripts/deps

vm: vm-deps go-found ## tests on Linux 6.1 and 6.12, in QEMU; KERNEL=6.1 PKG=./loader RUN=TestX for some
	@PATH="$(dir $(GO)):$$PATH" $(GO) run ./tests/kernellab $(if $(KERNEL),-kernel $(KERNEL)) $(if $(PKG),-pkg $(PKG)) $(if $(RUN),-run '$(RUN)') $(VMFLAGS)

insns: vm-deps go-found ## writes the table of verified instructions, for this kernel and the lab's
	$(GO) run ./tests/verifier -update
	@PATH="$(dir $(GO)):$$PATH" $(GO) run ./tests/kernellab -insns

vm-deps: ## QEMU, and Debian's kernels into the cache
	@sh scripts/kernels

lab-shell: go-found ## a shell in a host of its own: client, uplink, store, pins, cgroup
	$(GO) run ./tests/lab/shell

readme: deps go-found ## runs what README.md shows and writes the output into it (root)
	$(GO) test -count=1 ./tests/readme -update

conformance: deps vm-deps go-found ## every row that is promised; writes docs/conformance.md (root)
	$(GO) run ./tests/conformance/run docs/conformance.md

differences: deps go-found ## the rows on iptables; what fails must be listed; writes docs/differences.md
	$(GO) run ./tests/conformance/run -datapath iptables docs/differences.md

docker-rows: deps engines-deps go-found ## the rows A to D with Docker's containers; what fails must be listed; writes docs/docker-rows.md
	$(GO) run ./tests/conformance/run -cast docker docs/docker-rows.md

soak: deps vm-deps go-found ## the same with the counts that are promised; writes docs/soak.md
	BPFNET_SOAK=1 $(GO) run ./tests/conformance/run docs/soak.md

deb: go-found ## a Debian package: binary, unit, completions, man pages
	@GO=$(GO) sh packaging/deb

clean: ## what building made
	rm -f bpfnet bpfnet_*.deb
