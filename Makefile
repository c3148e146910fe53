# Two commands matter: `make demo` and `make test`. Both work from a bare clone.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 --version >/dev/null 2>&1 && echo python3.12 || \
                  (command -v python3.11 >/dev/null 2>&1 && python3.11 --version >/dev/null 2>&1 && echo python3.11) || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS ?= .venv-peers
JOBS ?= 2
# A file's tests stay in one process, which makes what they share once.
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test quick lint types bench clean

help: ## Lists the commands.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## Makes the virtual environment (PYTHON=..., VENV=... choose others).

$(INSTALLED): setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing (about 3 GB, one to three minutes) ..."
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $(INSTALLED)

demo: $(INSTALLED) ## Builds a recommender from the simulated platform and prints recommendations.
	$(BIN)/upnext run demo --workdir runs/demo

test: lint types ## Lint, types and the whole test suite (in JOBS=2 processes, each up to 3 GB).
	$(PYTEST)

quick: $(INSTALLED) ## The tests without the slow ones.
	$(PYTEST) -m "not slow"

lint: $(INSTALLED) ## Style of the code (ruff).
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## Types (mypy).
	$(BIN)/mypy

bench: $(INSTALLED) $(PEERS)/.installed ## Speed benchmarks, beside peers in an environment of their own (about 20 minutes).
	$(BIN)/python -m benchmarks.speed all --peers $(PEERS)/bin/python

$(PEERS)/.installed: benchmarks/speed/requirements-peers.txt
	$(PYTHON) -m venv $(PEERS)
	@echo "Installing the peers (several minutes) ..."
	@while read -r peer; do $(PEERS)/bin/python -m pip install --quiet "$$peer" || \
		echo "$$peer cannot be installed here; measured without it."; done < $<
	@touch $@

clean: ## Removes the virtual environments, caches and runs.
	rm -rf $(VENV) $(PEERS) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
