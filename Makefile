# Everything that is checked, by the same words for people and for CI. `make` alone says what there is.
#
# What the checks need and a machine may lack (buf, cargo-deny, the foreign clients' libraries) is installed below
# target/ in pinned versions, on first use. A tool that cannot be had is a failure, never a skip.

CARGO_DENY_VERSION := 0.20.2
CARGO_CYCLONEDX_VERSION := 0.5.9

# In CI the lock file is law; at home `make test` may follow an edit of Cargo.toml.
LOCKED := $(if $(CI),--locked)
# And CI tells of every test that fails, not of the first.
NO_FAIL_FAST := $(if $(CI),--no-fail-fast)

# What only tests have: a real Redis, and processes that are killed at named moments.
TEST_FEATURES := --features tests-with-redis,failpoints

FOREIGN := tests/foreign
CHART   := helm/license-gateway
PYTHON  := target/venv/bin/python
BUF     := target/node/node_modules/.bin/buf
DENY    := target/tools/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny
CYCLONEDX := target/tools/cargo-cyclonedx-$(CARGO_CYCLONEDX_VERSION)/bin/cargo-cyclonedx
PROTO_BASELINE := tests/contract/licensing.binpb

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

##@ Every day

.PHONY: help
help: ## say what there is
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\n'

.PHONY: demo
demo: ## sandbox, gateway and one real call, told step by step
	cargo run -q $(LOCKED) -- demo

.PHONY: test
test: test-rust test-prometheus test-chart test-foreign ## every test: Rust, the shipped views, the chart, then the foreign clients

.PHONY: readme
readme: ## paste into README.md what the program prints: settings and demo
	cargo build -q $(LOCKED)
	scripts/paste-readme

# The chart ships copies, because a package of it holds its own directory alone; a test compares them.
.PHONY: chart-files
chart-files: ## copy rules and dashboard into the chart
	cp deploy/prometheus/rules.yaml deploy/grafana/dashboard.json $(CHART)/files/

.PHONY: chart-readme
chart-readme: target/venv-chart/complete ## paste into the chart's README what its values.yaml says
	target/venv-chart/bin/python scripts/chart-readme

# QUICK=1: seconds, and a debug build, which the tests have made already; the numbers mean nothing.
.PHONY: bench
bench: ## what the gateway costs under load, here and now (ONLY="scenario …", QUICK=1)
	cargo bench $(LOCKED) $(if $(QUICK),--profile dev $(TEST_FEATURES)) --bench load -- $(if $(QUICK),--quick) $(ONLY)

.PHONY: performance
performance: ## measure everything and paste it into docs/performance.md: eight minutes on a quiet machine
	mkdir -p target
	cargo bench $(LOCKED) --bench load > target/performance.md
	scripts/paste-performance target/performance.md

.PHONY: simulate
simulate: ## invented days with everything that goes wrong, each from a seed and judged: SEEDS=300 START=0
	SEEDS=$(or $(SEEDS),300) START=$(or $(START),0) \
	  cargo test $(LOCKED) $(TEST_FEATURES) --test simulation -- --nocapture

.PHONY: torture
torture: ## kill, pause and race the token's custody and the audit trail for hours: KILLS=1000 ROUNDS=2000
	scripts/install-packages redis-server
	LICENSE_GATEWAY_TEST_KILLS=$(or $(KILLS),1000) LICENSE_GATEWAY_TEST_AUDIT_KILLS=$(or $(KILLS),1000) \
	  LICENSE_GATEWAY_TEST_ROUNDS=$(or $(ROUNDS),2000) \
	  cargo test $(LOCKED) $(TEST_FEATURES) --package license-gateway --lib --test api --no-fail-fast -- killed replicas crashes

# ONLY=word plants those whose names contain it.
.PHONY: planted-bugs
planted-bugs: ## plant mistakes in a copy of the tree, one at a time: each must be noticed by the test it names (ONLY=word)
	scripts/install-packages redis-server
	scripts/planted-bugs $(ONLY)

# Not part of any check: what CI checks are the queries, not the picture.
.PHONY: dashboard-picture
dashboard-picture: target/venv/complete target/venv-pictures/complete ## docs/images/dashboard.png, drawn from the dashboard's queries
	scripts/install-packages prometheus
	cargo build -q $(LOCKED)
	$(PYTHON) tests/prometheus/check.py --pause 8 --save target/dashboard.json
	target/venv-pictures/bin/python scripts/draw-dashboard target/dashboard.json docs/images/dashboard.png

# Needs twenty minutes, or SECONDS.
.PHONY: soak
soak: ## callers, failures and strangers at once: memory, file descriptors and threads must not grow
	cargo bench $(LOCKED) --bench load -- soak --soak-seconds $(or $(SECONDS),1200)

# Not part of CI, which plays the corpus in the Rust tests. A minute for each target; RUNS=10000000 instead, ONLY="jwt etag".
.PHONY: fuzz
fuzz: ## inputs that a fuzzer invents, for whatever reads what others write (ONLY=..., SECONDS=60 or RUNS=...)
	scripts/fuzz $(if $(RUNS),--runs $(RUNS),--seconds $(or $(SECONDS),60)) $(ONLY)

# Not part of CI: Phoenix is 850 MB of packages. What CI checks of traces is in the Rust tests.
.PHONY: trace-demo
trace-demo: target/venv-phoenix/complete target/venv/complete ## the demo's traces at a real tracing backend, Phoenix
	cargo build -q $(LOCKED)
	$(PYTHON) -c 'import sys; sys.path.insert(0, "$(FOREIGN)"); import run; run.generate_stubs()'
	target/venv-phoenix/bin/python tests/phoenix/check.py $(TRACE_PICTURE)

.PHONY: trace-picture
trace-picture: ## docs/images/trace.png: a screenshot of that trace in Phoenix, by Debian's chromium
	scripts/install-packages chromium-headless-shell
	$(MAKE) --no-print-directory trace-demo \
	  TRACE_PICTURE='--browser chromium-headless-shell --picture docs/images/trace.png'

.PHONY: image
image: ## both container images, by buildah, from nothing but Debian and Rust packages (as root)
	scripts/image

# Another minute or four: every byte again.
.PHONY: reproducible
reproducible: ## build the binary of the production image once more elsewhere: the same bytes (QUICK=1: the sandbox's)
	scripts/image --again $(if $(QUICK),--quick-sandbox license-gateway-sandbox,license-gateway)

.PHONY: sbom
sbom: $(CYCLONEDX) ## target/sbom/license-gateway.cdx.json: what the production binary is made of
	scripts/sbom $(CYCLONEDX) target/sbom/license-gateway.cdx.json

.PHONY: fmt
fmt: target/node/complete ## format Rust and proto
	cargo fmt
	$(BUF) format -w

.PHONY: lint
lint: lint-rust lint-doc lint-deny lint-proto lint-release ## every check that is not a test

.PHONY: ci
ci: ## exactly what CI does, on this machine
	bash .ci/run

##@ One at a time

.PHONY: test-rust
test-rust: ## the Rust tests of all members, by cargo alone
	scripts/install-packages redis-server
	cargo test $(LOCKED) $(TEST_FEATURES) $(NO_FAIL_FAST)

# ONLY=word runs the tests whose names contain it.
.PHONY: test-foreign
test-foreign: target/venv/complete target/node/complete ## Python, Node, Go, Java, buf, raw HTTP/2 against the real binary, and Envoy (ONLY=word)
	cargo build $(LOCKED)
	$(PYTHON) $(FOREIGN)/run.py $(ONLY)

.PHONY: test-prometheus
test-prometheus: target/venv/complete ## alerts, dashboard and /metrics at a real Prometheus, by promtool and by script
	scripts/install-packages prometheus
	cargo build $(LOCKED)
	$(PYTHON) tests/prometheus/check.py

# ONLY=word runs the checks whose names contain it. The pods need root; --without-pods says loudly what is left out.
.PHONY: test-chart
test-chart: target/venv-chart/complete ## the chart, by real helm, Kubernetes' schemas, and the real binary in what is rendered (ONLY=word)
	scripts/install-packages openssl redis-server
	cargo build $(LOCKED)
	target/venv-chart/bin/python tests/chart/check.py $(ONLY)

# The sandbox's image by the profile `quick`: a third of the time. Its network is cut off, hence unshare.
.PHONY: test-image
test-image: target/venv-image/complete ## build both images, look into them and run them: hadolint, buildah, runc (as root)
	target/venv-image/bin/hadolint Dockerfile
	scripts/install-packages buildah debootstrap runc openssl
	scripts/image --quick-sandbox
	unshare --net python3 tests/image/check.py

.PHONY: lint-release
lint-release: ## crates, chart, image and contract carry one version; no unsafe code; every path that documents name exists; sizes and names
	scripts/check-release
	scripts/check-paths
	scripts/check-sizes

.PHONY: lint-rust
lint-rust: ## rustfmt and clippy, with every feature and with none
	cargo fmt --check
	cargo clippy $(LOCKED) --all-targets --all-features -- -D warnings
	cargo clippy $(LOCKED) --lib --bins --no-default-features -- -D warnings

# Readers of this documentation work on the crate: private items are shown, and linked to.
.PHONY: lint-doc
lint-doc: ## rustdoc: every link leads somewhere
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' \
	  cargo doc $(LOCKED) --no-deps --document-private-items

.PHONY: lint-deny
lint-deny: $(DENY) ## licences, banned and duplicate crates, sources, advisories
	$(DENY) $(LOCKED) check -D unmatched-skip -D unused-wrapper -D unnecessary-skip bans licenses sources
	scripts/check-advisories $(DENY)

.PHONY: lint-proto
lint-proto: target/venv/complete target/node/complete ## buf lint, format, breaking; protox and buf agree
	$(BUF) lint
	$(BUF) format -d --exit-code
	$(BUF) breaking --against $(PROTO_BASELINE)
	scripts/check-descriptors $(BUF) $(PYTHON) $(LOCKED)

# The baseline is the contract that callers have. Refresh it when the contract grows, in the same commit, so that what
# was added cannot be taken away again. `buf breaking` runs first: a change that breaks callers is not made by
# refreshing the baseline but by a new package, central.licensing.v2.
.PHONY: buf-image
buf-image: target/node/complete ## remember the contract as callers have it now (after it has grown)
	if [ -e $(PROTO_BASELINE) ]; then $(BUF) breaking --against $(PROTO_BASELINE); fi
	$(BUF) build --exclude-source-info -o $(PROTO_BASELINE)

.PHONY: tools
tools: target/venv/complete target/venv-chart/complete target/node/complete $(DENY) ## install what the checks need, below target/

# ---- what is installed: the stamp is written last, so that half an installation is done again ----

target/venv/complete: $(FOREIGN)/requirements.txt
	python3 -m venv --clear target/venv
	target/venv/bin/pip install --quiet --no-input --disable-pip-version-check -r $<
	touch $@

target/venv-chart/complete: tests/chart/requirements.txt $(FOREIGN)/requirements.txt
	python3 -m venv --clear target/venv-chart
	target/venv-chart/bin/pip install --quiet --no-input --disable-pip-version-check -r $<
	touch $@

target/venv-phoenix/complete: tests/phoenix/requirements.txt
	python3 -m venv --clear target/venv-phoenix
	target/venv-phoenix/bin/pip install --quiet --no-input --disable-pip-version-check -r $<
	touch $@

target/venv-image/complete: tests/image/requirements.txt
	python3 -m venv --clear target/venv-image
	target/venv-image/bin/pip install --quiet --no-input --disable-pip-version-check -r $<
	touch $@

target/venv-pictures/complete: scripts/draw-requirements.txt
	python3 -m venv --clear target/venv-pictures
	target/venv-pictures/bin/pip install --quiet --no-input --disable-pip-version-check -r $<
	touch $@

# Not `npm ci`: it insists on the buf binaries of every operating system, and some registries carry only a few of them.
# `npm install` takes versions and checksums from the lock all the same.
target/node/complete: $(FOREIGN)/package.json $(FOREIGN)/package-lock.json $(FOREIGN)/.npmrc
	rm -rf target/node && mkdir -p target/node
	cp $^ target/node/
	cd target/node && npm install --loglevel=error
	touch $@

$(DENY):
	scripts/cargo-tool cargo-deny $(CARGO_DENY_VERSION) >/dev/null

$(CYCLONEDX):
	scripts/cargo-tool cargo-cyclonedx $(CARGO_CYCLONEDX_VERSION) >/dev/null
