# Every target makes .venv by itself; it needs only Python >= 3.11 with venv, and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready-$(shell cat requirements.lock pyproject.toml | cksum | tr ' ' '-')
# The longest tests first: those at the end are what one worker takes from another.
SUITES := tests/e2e tests/crash tests/scenario tests/spec tests/contract tests/edge
# Set in many containers: thousands of processes would each compile all that they import.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check fmt bench long lock clean

help:            ## this list
	@sed -n 's/^\([a-z]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# Most of what is installed is never imported: compiling all of it takes longer than the rest.
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

$(READY):
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps --editable .
	touch $@

demo: $(READY)   ## train a small model, hand its checkpoints over, read one back
	$(BIN)/python examples/demo.py

test: $(READY)   ## every suite, the real S3 servers included
	$(BIN)/python -m tests.servers.install & trap wait EXIT; \
	$(BIN)/python -m pytest tests/unit --cov --cov-report=term:skip-covered --cov-fail-under=100 && \
	$(BIN)/python -m pytest $(SUITES) -n 4 --dist worksteal

check: $(READY)  ## lint, types, layers, locked versions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pip check

fmt: $(READY)    ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## the figures in README, with their peers
	$(BIN)/python benchmarks/handoff.py
	$(BIN)/python benchmarks/catalog.py
	$(BIN)/python benchmarks/blocking.py
	$(BIN)/python benchmarks/interference.py
	$(BIN)/python benchmarks/stall.py
	$(BIN)/python benchmarks/peers.py --profile --picture docs/peers.svg

long: $(READY)   ## the same suites at full size; seeds are printed
	ML_DASH_TEST_LONG=1 $(BIN)/python -m pytest tests

lock:            ## pin the newest versions that pyproject.toml allows
	$(PYTHON) -m venv .cache/uv && .cache/uv/bin/pip install --quiet uv==0.13.9
	.cache/uv/bin/uv pip compile --quiet --no-config --universal --no-strip-extras --generate-hashes --upgrade \
	  --python-version 3.11 --extra daemon --extra fleet --extra media --extra dev --custom-compile-command "make lock" \
	  pyproject.toml --output-file requirements.lock

clean:           ## remove what the other targets made here
	rm -rf $(VENV) .cache build dist .coverage .hypothesis \
	  .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .dash-demo
