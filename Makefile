# Two commands: `make run` and `make test`. Both make the environment first, and do nothing twice.

VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEURAL_TANGENTS := neural-tangents==0.6.5

# A folder of .npz files, if there is one beside the checkout; see docs/howto/data.md.
ifndef CATAPULT_DATA_DIR
ifneq ($(wildcard ../shared/data/*.npz),)
export CATAPULT_DATA_DIR := $(abspath ../shared/data)
endif
endif

.PHONY: help env run test test-long test-matrix docs figures soak lint bench clean

help:
	@echo "make run    make the environment, then run configs/quickstart.py on embedded data (about a minute)"
	@echo "make test   make the environment, then run the tests"
	@echo "make test-long  the tests that make test leaves out: kills, full disks, every config, every loss, meshes; minutes"
	@echo "make env    only the environment, in $(VENV)"
	@echo "make docs   the site, into docs/_build/html; runs every code cell that changed"
	@echo "make figures  the pictures of docs/figures: runs every experiment that is not complete, for hours"
	@echo "make test-matrix  the tests on Python 3.11 to 3.13, with the oldest and the newest JAX"
	@echo "make soak   the long tests of reliability, into docs/soak.json"
	@echo "make lint   ruff, and basedpyright on the library"
	@echo "make bench  the benchmarks, into benchmarks/results"
	@echo "make clean  remove the environment"

env: $(READY)

$(READY): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; set PYTHON=/path/to/python3"; exit 1; }
	@echo "making the environment in $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]" $(PINS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(NEURAL_TANGENTS)
	@touch $(READY)

run: $(READY)
	@echo "running configs/quickstart.py; the report comes to runs/"
	@$(BIN)/python -m experiments.main --config=configs/quickstart.py

test: $(READY)
	@echo "running the tests"
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

test-long: $(READY)
	@echo "running the long tests"
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m long

docs: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@$(BIN)/python -m sphinx -E -W --keep-going -q -j 2 -b html docs docs/_build/html
	@echo "site: docs/_build/html/index.html"

figures: $(READY)
	@$(BIN)/python -m experiments.schedules docs/figures/schedules.png
	@$(BIN)/python -m experiments.claims --scale=cpu

# Each row in an environment of its own: Python, and versions that replace those of requirements.txt.
test-matrix:
	@$(MAKE) test VENV=.venv-3.11 PYTHON=python3.11 PINS="jax==0.9.2"
	@$(MAKE) test VENV=.venv-3.12 PYTHON=python3.12
	@$(MAKE) test VENV=.venv-3.13 PYTHON=python3.13

soak: $(READY)
	@$(BIN)/python -m tests.programs.soak --write

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/basedpyright

bench: $(READY)
	@$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV)
