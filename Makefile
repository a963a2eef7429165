# Two commands: `make demo` to see it at work, `make test` to check it. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# What pip does with one core; it fails where a package has a file that is no Python.
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib hpo || true

.PHONY: demo test lint pytest bits clean

demo: .venv/demo
	$(BIN)/hpo run quickstart

test: lint pytest
	$(MAKE) bits

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One process more than a small machine has cores, for tests wait; so each computes with one thread.
pytest: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3

# The numbers of folded trials once more, as on a processor with AVX2 only: its kernels sum in other orders.
bits: .venv/test
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -n 3 -m bits tests/finetune

clean:
	rm -rf .venv

# torch goes first and alone, so that nothing else chooses a build for it.
.venv/torch: constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "hpo needs Python 3.11 to 3.13"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --no-compile -c constraints.txt torch
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(PIP) install --no-compile -c constraints.txt -e '.[quickstart]'
	$(COMPILE)
	touch $@

.venv/test: .venv/torch pyproject.toml
	$(PIP) install --no-compile -c constraints.txt -e '.[test]'
	$(COMPILE)
	touch $@
