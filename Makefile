VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS  := -s -w -X github.com/berthd/berth/daemon.Version=$(VERSION) -X github.com/berthd/berth/daemon.Revision=$(REVISION)

.PHONY: build run test tools lint bench

build: ## bin/berth and bin/berth-shim
	CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)" -o bin/ ./cmd/...

run: build tools ## start a daemon of its own and run a first container
	PATH="$$(go run ./test/tools):$$PATH" bin/berth demo

tools: ## what the tests need and this machine lacks
	@go run ./test/tools >/dev/null

test: tools ## everything, with the race detector
	go vet ./...
	PATH="$$(go run ./test/tools):$$PATH" go test -race -timeout 45m ./...

lint: ## the linter's opinion
	go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.5.0 run

bench: build tools ## berth beside containerd, as ratios
	PATH="$$(go run ./test/tools):$$PATH" go run ./test/bench
