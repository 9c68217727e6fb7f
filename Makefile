# Which Python makes the environment, and where it goes: `make test PYTHON=python3.13 VENV=.venv313`.
PYTHON ?= python3
VENV := .venv

# The stamps of a finished set-up carry a checksum of the place, since an environment does not survive a move.
PLACE := $(shell pwd | cksum | cut -d ' ' -f 1)
DEMO_READY := $(VENV)/.demo-ready-$(PLACE)
TEST_READY := $(VENV)/.test-ready-$(PLACE)

# The peers bring requirements of their own, so they are measured in an environment of their own.
BENCH_VENV := $(VENV)-bench
BENCH_PY := $(BENCH_VENV)/bin/python
BENCH_READY := $(BENCH_VENV)/.bench-ready-$(PLACE)

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo stack stack-down e2e test frameworks browser parts bench bench-readme lint types format clean

help: ## List the targets.
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: $(DEMO_READY) ## Set up, then show the callbacks and the telemetry of a few calls.
	@$(VENV)/bin/otel-llm-callback demo --view $(DEMO_ARGS)

stack: | $(PY) ## Start Collector, Jaeger and Prometheus without containers; built from Go modules the first time.
	@PYTHONPATH=stack $(PY) -m native up $(addprefix --overlay=,$(OVERLAYS))

stack-down: | $(PY) ## End what `make stack` started; the data stays in .stack.
	@PYTHONPATH=stack $(PY) -m native down

e2e: $(TEST_READY) ## Set up, then run the tests against the real programs of the stack.
	$(PY) -m pytest tests/stack -rP $(PYTEST_ARGS)

# In CI no test may go without what it needs, so all of it is made first.
test: lint types browser $(if $(filter true,$(CI)),parts) ## Set up, then check format, lint and types and run the tests.
	$(PY) -m pytest $(PYTEST_ARGS)

frameworks: $(TEST_READY) ## Set up, make an environment for each framework where there is none, and run their tests.
	$(PY) tests/frameworks/_environments.py
	$(PY) -m pytest tests/frameworks -rP $(PYTEST_ARGS)

browser: $(TEST_READY) ## Have Chromium for the tests of the live view, by apt-get where that is allowed.
	@$(PY) tests/viewer/_browser.py

parts: $(TEST_READY) ## Set up, make what slow tests need, in the user's cache: frameworks, llama-server; takes minutes.
	@$(PY) tests/real_servers.py & servers=$$!; $(PY) tests/frameworks/_environments.py; code=$$?; wait $$servers && exit $$code

bench: $(BENCH_READY) ## Set up, then measure what we and the peers cost, and keep the results.
	$(BENCH_PY) benchmarks --save $(BENCH_ARGS)

bench-readme: $(BENCH_READY) ## The same, and put the table into the README.
	$(BENCH_PY) benchmarks --readme $(BENCH_ARGS)

lint: $(TEST_READY) ## Set up, then check format and lint.
	$(PY) -m ruff format --check
	$(PY) -m ruff check

types: $(TEST_READY) ## Set up, then check the types.
	$(PY) -m mypy

format: $(TEST_READY) ## Set up, then format the code and fix what can be fixed safely.
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

clean: ## Remove the environment, caches and build results.
	rm -rf $(VENV) $(BENCH_VENV) build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .nox .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# An environment that is there already is used as it is, unless the Python it was made from is gone.
ifneq ($(shell test -x $(PY) && echo there),there)
.PHONY: $(DEMO_READY) $(TEST_READY)
endif

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "This needs Python 3.10 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)" >&2; \
	    echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	    exit 1; }
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

# Dependency groups need pip 25.1; where pip is newer, the first line downloads nothing.
$(DEMO_READY): pyproject.toml | $(PY)
	$(PIP) install 'pip>=25.1'
	$(PIP) install --editable '.[console,instruments,otlp,viewer]'
	@touch $@

$(TEST_READY): pyproject.toml $(DEMO_READY)
	$(PIP) install --editable '.[all]' --group test --group lint
	@touch $@

$(BENCH_READY): pyproject.toml benchmarks/requirements-peers.txt | $(PY)
	$(PY) -m venv --clear $(BENCH_VENV)
	$(BENCH_PY) -m pip --disable-pip-version-check --quiet install --editable '.[instruments]' opentelemetry-sdk -r benchmarks/requirements-peers.txt
	@touch $@
