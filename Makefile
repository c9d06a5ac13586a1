# Everything sets itself up: a bare clone and Python 3.10 or newer are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-all check format bench clean
help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: $(VENV)/.installed  ## train on generated data, see the mistakes, write the report: two to six minutes on two cores
	$(BIN)/sightline demo

test: $(VENV)/.installed-dev check  ## lint, types and tests: within twelve minutes on two cores
	$(BIN)/pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

test-all: $(VENV)/.installed-dev check  ## the long tests too
	$(BIN)/pytest

check: $(VENV)/.installed-dev  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## put the code in its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev  ## speed of training and of heatmaps against others, trust on generated data, the report: half an hour
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/heatmaps.py
	$(BIN)/python benchmarks/trust.py
	$(BIN)/python benchmarks/report.py

clean:  ## remove the virtual environment and the runs
	rm -rf $(VENV) runs

# torch goes first: where a CPU build of it is at hand, nothing after it brings CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "needs Python 3.10 or newer: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@touch $@
