# make quickstart   executes the first notebook on the real model, prints ranking and target modules
# make check        ruff, mypy, doctests and the fast tests: a minute, after every change
# make test         the same, then everything else: slow tests, and every notebook's outputs compared
# make arithmetic   all notebooks under the arithmetic of other processors (before a release: an hour)
# make notebooks    executes all notebooks in place (after a change)
# make gallery      renders the executed notebooks to static pages in build/gallery
# make bench        what scoring costs beside a forward pass and other ways to choose (half an hour)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Two test processes that share the cores: more need more memory (2 GB each), with fewer a core idles.
WORKERS ?= 2
CORES := len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
THREADS := $(shell $(PYTHON) -c "import os; print(max(1, ($(CORES)) // $(WORKERS)))")
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(THREADS)} \
	$(BIN)/python -m pytest -v --durations=20 -n $(WORKERS) --dist loadfile
# Notebooks are linted, but not formatted: their lines break where they read best.
FORMATTED := conftest.py plop_nb tests notebooks/tools

.PHONY: quickstart check test arithmetic notebooks gallery bench clean

quickstart: $(VENV)/ready
	$(BIN)/python notebooks/tools/run.py 00_quickstart --out build

check: $(VENV)/ready
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check $(FORMATTED)
	$(BIN)/python -m mypy
	$(PYTEST) -m "not slow" plop_nb tests

test: check
	$(PYTEST) -m slow

arithmetic: $(VENV)/ready
	$(BIN)/python -m tests.arithmetic

notebooks: $(VENV)/ready
	$(BIN)/python notebooks/tools/run.py

gallery: $(VENV)/ready
	$(BIN)/python notebooks/tools/gallery.py

bench: $(VENV)/ready
	mkdir -p build
	$(BIN)/python -m tests.bench --out build

$(VENV)/ready: pyproject.toml .ci/constraints.txt
	@echo "Installing the project and its packages into $(VENV): some 180 packages, one to five minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build
