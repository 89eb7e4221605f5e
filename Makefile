# Two targets do everything on a fresh Debian or Ubuntu with Go and Python 3: `make run` and `make test`.
SHELL := /bin/bash
BIN := bin
TOOLS := .cache/tools
GOLANGCI_LINT := v2.12.2
RUFF := 0.17.6
export GOFLAGS := -buildvcs=false
# A cache of its own: one shared between checkouts remembers paths of those that are gone, and with them findings.
export GOLANGCI_LINT_CACHE := $(CURDIR)/.cache/golangci-lint

ENGINES := .cache/engines
KUBERNETES := v1.34.4

IMAGE_PREFIX := ghcr.io/faas-predict
PYTHON_IMAGE := python:3.12-slim
R_IMAGE := r-base:4.5.1

.PHONY: help build images run test test-cluster test-docker test-kubernetes engines unit lint bench experiments experiments-short clean setup

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

build: ## build fwatchdog, faas-predict and faas-auth into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $(BIN)/fwatchdog ./watchdog
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $(BIN)/faas-predict ./provider
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $(BIN)/faas-auth ./auth

images: build ## build the images of the provider, of fwatchdog, which templates take it from, and of pushed bundles' runtimes
	docker build -f provider/Dockerfile -t $(IMAGE_PREFIX)/faas-predict:latest $(BIN)
	docker build -f watchdog/Dockerfile -t $(IMAGE_PREFIX)/fwatchdog:latest $(BIN)
	docker build -f watchdog/runtime.Dockerfile --build-arg WATCHDOG_IMAGE=$(IMAGE_PREFIX)/fwatchdog:latest \
	  --build-arg RUNTIME_IMAGE=$(PYTHON_IMAGE) -t $(IMAGE_PREFIX)/runtime-python3:latest $(BIN)
	docker build -f watchdog/runtime.Dockerfile --build-arg WATCHDOG_IMAGE=$(IMAGE_PREFIX)/fwatchdog:latest \
	  --build-arg RUNTIME_IMAGE=$(R_IMAGE) -t $(IMAGE_PREFIX)/runtime-r:latest $(BIN)

setup:
	@.ci/setup

run: setup build ## start the provider, deploy the examples, make a prediction, stay up until Ctrl-C
	@examples/run.sh

test: setup build lint unit ## everything: lint, unit, race, conformance and end-to-end

unit:
	go test -race -timeout 20m $$(go list ./... | grep -v /tests/)
	@# These run programs that go test's cache does not look at.
	go test -race -count=1 -timeout 20m $$(go list ./tests/... | grep -v /tests/cluster) ./tests/cluster/process
	@for model in examples/iris examples/ozone-python examples/compression/model template/python3-predict/function; do \
	  echo "== $$model"; (cd $$model && python3 -m unittest -q) || exit 1; \
	  $(BIN)/fwatchdog check $$model || exit 1; done
	@for model in examples/ozone template/r-predict/function; do \
	  echo "== $$model"; (cd $$model && Rscript test_main.R) || exit 1; \
	  $(BIN)/fwatchdog check $$model || exit 1; done

test-cluster: setup build engines ## functions on real container engines; needs root
	@# The two wait most of the time, and share neither networks nor control groups. unit has run tests/cluster/process.
	@# What runs here are clients; the programs under test are those in bin/, as users have them.
	$(MAKE) --no-print-directory --jobs=2 test-docker test-kubernetes

test-docker:
	go test -count=1 -p 1 -timeout 30m ./tests/cluster/images ./tests/cluster/swarm

test-kubernetes:
	go test -count=1 -p 1 -timeout 30m ./tests/cluster/kube ./tests/cluster/kubernetes

engines: ## build Kubernetes, etcd and Helm for test-cluster; some minutes, once
	@mkdir -p $(ENGINES)
	@cd tests/cluster/engines && export CGO_ENABLED=0 && \
	  go build -trimpath -ldflags '-s -w' -o ../../../$(ENGINES)/etcd go.etcd.io/etcd/server/v3 && \
	  go build -trimpath -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=$(KUBERNETES)' \
	    -o ../../../$(ENGINES)/ $$(go list tool | grep -v etcd)

lint: setup
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	go vet ./...
	@test -x $(TOOLS)/golangci-lint-$(GOLANGCI_LINT) || { echo "building golangci-lint (once)"; mkdir -p $(TOOLS) && \
	  GOBIN=$$PWD/$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT) && \
	  mv $(TOOLS)/golangci-lint $(TOOLS)/golangci-lint-$(GOLANGCI_LINT); }
	$(TOOLS)/golangci-lint-$(GOLANGCI_LINT) run
	@test -x $(TOOLS)/python/bin/ruff || { python3 -m venv $(TOOLS)/python && $(TOOLS)/python/bin/pip install -q ruff==$(RUFF); }
	$(TOOLS)/python/bin/ruff check .
	$(TOOLS)/python/bin/ruff format --check .
	shellcheck .ci/run .ci/setup examples/run.sh template/r-predict/install-packages.sh
	@for template in template/*; do (cd $$template && sha256sum --check --quiet starter.sha256) || exit 1; done

bench: setup build ## the figures of docs/performance.md, one run
	@mkdir -p .cache && go run ./tests/bench

experiments: build ## the paper's experiments: docs/experiments, in about a quarter of an hour
	go run ./tests/experiments

experiments-short: build ## the same with fewer points, in under two minutes, into .cache/experiments
	go run ./tests/experiments -short -out .cache/experiments

clean: ## remove what was built
	rm -rf $(BIN) .cache
