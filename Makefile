# `make demo` and `make test` set everything up on a machine with Python 3.11 or newer (and g++ for the native kernels).
# CI runs these same targets: see .ci/run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CSRC := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

# Triton's interpreter is chosen when Triton is imported, so these are a run of their own.
INTERPRETED := $(filter-out tests/test_triton_compile.py,$(wildcard tests/test_triton_*.py))

# Stamps lie inside the environment they describe, so that removing it removes them too.
DEVELOP := $(VENV)/develop.stamp
BUILT := $(VENV)/built.stamp

.PHONY: help demo test bench lint format gpu build clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 14

demo: $(BUILT) ## train JTANet on real images, every mined batch checked against the definition
	$(BIN)/python -m minerlib train jtanet --preset demo --output runs/demo

# Neighbouring tests share what the reference makes of their case: worksteal leaves them with one process.
test: $(BUILT) ## run the tests and the examples in the docstrings
	$(BIN)/python -m pytest -m "not gpu and not bench" -n auto --maxprocesses 4 --dist worksteal
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m "not gpu" -n auto --maxprocesses 4 $(INTERPRETED)

bench: $(BUILT) ## measure against the tools people use today (ten minutes on a quiet machine)
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-quiet -q $(BENCH_OPTIONS)

lint: $(DEVELOP) ## style, types and layout of Python and C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy minerlib
	$(if $(CSRC),$(BIN)/clang-format --dry-run --Werror $(CSRC))

format: $(DEVELOP) ## lay out Python and C++ as lint wants it
	$(BIN)/ruff format .
	$(if $(CSRC),$(BIN)/clang-format -i $(CSRC))

gpu: ## on a machine with a GPU: build in place, test and measure the GPU kernels; needs no network and no .venv
	@bench/gpu/run.sh $(wildcard $(BIN)/python) $(PYTHON)

build: $(BUILT) ## set up .venv and compile the native kernels

clean: ## remove what was built (the environment and runs/ stay)
	rm -rf build dist minerlib.egg-info minerlib/_native*.so minerlib/_cuda.so $(BUILT) .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "minerlib needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python -m venv failed (Debian: apt-get install python3-venv)" >&2; exit 1; }

$(DEVELOP): requirements-dev.txt | $(BIN)/python
	$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

# The directories are prerequisites too: they change when a file is removed. build_ext goes first because pip
# would hide its progress and its line about a missing compiler.
$(BUILT): $(DEVELOP) setup.py pyproject.toml $(shell find csrc)
	$(BIN)/python setup.py -q build_ext --inplace
	$(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@
