# make quickstart   executes the first notebook on the real model, prints ranking and target modules
# make test         unit tests, doctests, README snippets, and every notebook's outputs compared
# make test-fast    unit tests and doctests without the slow ones and the notebooks; stops at the first that fails
# make arithmetic   all notebooks under the arithmetic of other processors (before a release: an hour)
# make notebooks    executes all notebooks in place (after a change)
# make gallery      renders the executed notebooks to static pages in build/gallery
# make bench        what scoring costs beside a forward pass and other ways to choose (half an hour on two cores)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Two test processes that share the cores: more need more memory (2 GB each), and with fewer a core idles.
WORKERS ?= 2
CORES := len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
THREADS := $(shell $(PYTHON) -c "import os; print(max(1, ($(CORES)) // $(WORKERS)))")
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(THREADS)} $(BIN)/python -m pytest -v -n $(WORKERS) --dist loadfile

.PHONY: quickstart test test-fast arithmetic notebooks gallery bench clean

quickstart: $(VENV)/ready
	$(BIN)/python notebooks/run.py 00_quickstart --out build

test: $(VENV)/ready
	$(PYTEST) --durations=20

test-fast: $(VENV)/ready
	$(PYTEST) -x -m "not slow" plop_nb tests

arithmetic: $(VENV)/ready
	$(BIN)/python -m tests.arithmetic

notebooks: $(VENV)/ready
	$(BIN)/python notebooks/run.py

gallery: $(VENV)/ready
	$(BIN)/python notebooks/gallery.py

bench: $(VENV)/ready
	mkdir -p build
	$(BIN)/python -m tests.bench --out build

$(VENV)/ready: pyproject.toml .ci/constraints.txt
	@echo "Installing the project and its packages into $(VENV): some 160 packages, one to five minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build
