# Two commands: `make demo` to see it at work, `make test` to check it. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test clean

demo: .venv/demo
	$(BIN)/hpo run quickstart

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

clean:
	rm -rf .venv

# torch goes first and alone, so that nothing else chooses a build for it.
.venv/torch: constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "hpo needs Python 3.11 to 3.13"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -c constraints.txt torch
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[quickstart]'
	touch $@

.venv/test: .venv/torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@
