# Two commands: `make run` and `make test`. Both make the environment first, and do nothing twice.

VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEURAL_TANGENTS := neural-tangents==0.6.5

# A folder of .npz files, if there is one beside the checkout; see "Data" in README.md.
ifndef CATAPULT_DATA_DIR
ifneq ($(wildcard ../shared/data/*.npz),)
export CATAPULT_DATA_DIR := $(abspath ../shared/data)
endif
endif

.PHONY: help env run test soak lint bench clean

help:
	@echo "make run    make the environment, then run configs/quickstart.py on embedded data (about a minute)"
	@echo "make test   make the environment, then run the tests"
	@echo "make env    only the environment, in $(VENV)"
	@echo "make soak   the long tests of reliability, into docs/soak.json"
	@echo "make lint   ruff, and basedpyright on the library"
	@echo "make bench  the benchmarks, into benchmarks/results"
	@echo "make clean  remove the environment"

env: $(READY)

$(READY): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; set PYTHON=/path/to/python3"; exit 1; }
	@echo "making the environment in $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(NEURAL_TANGENTS)
	@touch $(READY)

run: $(READY)
	@echo "running configs/quickstart.py; the report comes to runs/"
	@$(BIN)/python -m experiments.main --config=configs/quickstart.py

test: $(READY)
	@echo "running the tests"
	@$(BIN)/python -m pytest -n 2 --dist worksteal

soak: $(READY)
	@$(BIN)/python -m tests.programs.soak --write

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/basedpyright

bench: $(READY)
	@$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV)
