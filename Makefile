.DEFAULT_GOAL := help
.PHONY: setup demo test lint help

# The first interpreter on the path that the project supports and that can make an environment; 3.11 is the most tested.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)
PY := .venv/bin/python
STAMP := .venv/.up-to-date

setup: $(STAMP)  ## Make .venv and install the project with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11, 3.12 or 3.13 with venv on the path. Install one, or name it: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv (a few minutes the first time)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## Six hospitals with different modalities teach one student (some minutes, most of them installing)
	@$(PY) -m simulations.launch demo $(OVERRIDES)

test: lint  ## Run the linters and all tests
	@$(PY) -m pytest -n 2 --dist worksteal -q

lint: setup  ## Check style, formatting, types and which room imports which
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports

help:  ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-14s%s\n", $$1, $$2}'
