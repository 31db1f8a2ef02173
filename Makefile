# make quickstart   executes the first notebook on the real model, prints ranking and target modules
#                   (make quickstart TORCH=cpu: on Linux without a GPU, 2.8 GB less to download)
# make check        ruff, mypy, doctests and the fast tests: a minute, after every change
# make test         the same, then everything else: slow tests, and every notebook's outputs compared
# make arithmetic   all notebooks under the arithmetic of other processors (before a release: an hour)
# make notebooks    executes all notebooks in place (after a change)
# make site         builds the executed notebooks, guide and reference into build/site, to read offline
# make lowest       the fast tests of the core with the oldest packages that pyproject.toml allows, in
#                   build/lowest (minutes; 3 GB to download); make newest: with the newest ones
# make bench        what scoring costs beside a forward pass and other ways to choose (half an hour)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

INSTALL := $(PYTHON) notebooks/tools/install.py $(VENV) $(if $(filter cpu,$(TORCH)),--cpu)

# Two test processes that share the cores: more need more memory (2 GB each), with fewer a core idles.
WORKERS ?= 2
CORES := len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
THREADS := $(shell $(PYTHON) -c "import os; print(max(1, ($(CORES)) // $(WORKERS)))")
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(THREADS)} \
	$(BIN)/python -m pytest -v --durations=20 -n $(WORKERS) --dist loadfile
# Notebooks are linted, but not formatted: their lines break where they read best.
FORMATTED := conftest.py plop_nb tests notebooks/tools
# The tests that run on other versions of the dependencies, too.
VERSIONED := scoring stats_and_placement targets ranks coverage texts plots

.PHONY: quickstart check test arithmetic notebooks site lowest newest bench clean

quickstart: $(VENV)/quickstart
	@echo "Executing the first notebook: one to five minutes (the first time it also downloads the"
	@echo "model, 93 MB, to ~/.cache/plop_nb)"
	@$(BIN)/python notebooks/tools/run.py 00_quickstart --out build
	@echo
	@echo "Next: open it, run its cells, do its exercises, with"
	@echo "    $(BIN)/jupyter lab notebooks/00_quickstart.ipynb"
	@echo "The other notebooks are beside it; some need more packages:"
	@echo "    $(BIN)/python -m pip install -e '.[tasks]'"

check: $(VENV)/ready
	@echo "Reading the code with ruff (seconds) and mypy (half a minute, the first time two)"
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check $(FORMATTED)
	$(BIN)/python -m mypy
	@echo "Running the fast tests and the doctests: one to three minutes"
	$(PYTEST) -m "not slow" plop_nb tests

test: check
	@echo "Running the slow tests and the cells of all notebooks: 10 to 30 minutes on two cores (the"
	@echo "first time it also downloads models, 93 to 240 MB each, to ~/.cache/plop_nb)"
	$(PYTEST) -m slow

arithmetic: $(VENV)/ready
	$(BIN)/python -m tests.arithmetic

notebooks: $(VENV)/ready
	$(BIN)/python notebooks/tools/run.py

site: $(VENV)/ready
	$(BIN)/python notebooks/tools/site/build.py

bench: $(VENV)/ready
	mkdir -p build
	$(BIN)/python -m tests.bench --out build

lowest newest:
	$(PYTHON) -m venv --clear build/$@
	build/$@/bin/pip install -q uv
	build/$@/bin/uv pip install --python build/$@ --resolution $(if $(filter lowest,$@),lowest-direct,highest) \
		-e ".[tasks,hub,finetune,notebooks]" "pytest>=8.4" "pytest-xdist>=3.6" "nbval>=0.11"
	build/$@/bin/python -m pytest -m "not slow" $(VERSIONED:%=tests/test_%.py)

# What the first notebook runs, and JupyterLab to open it.
$(VENV)/quickstart: pyproject.toml .ci/constraints.txt
	@$(INSTALL) ".[finetune,notebooks]"
	@touch $@

# Everything, so that the quickstart has nothing left to install.
$(VENV)/ready: pyproject.toml .ci/constraints.txt
	@$(INSTALL) ".[dev]"
	@touch $(VENV)/quickstart $@

clean:
	rm -rf $(VENV) build
