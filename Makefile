# Two commands: `make demo` to see it at work, `make test` to check it. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# What pip does with one core; it fails where a package has a file that is no Python.
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib hpo || true

.PHONY: demo test lint pytest clean

demo: .venv/demo
	$(BIN)/hpo run quickstart

test: lint pytest

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One process more than a small machine has cores, for tests wait; so each computes with one thread.
pytest: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3

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
