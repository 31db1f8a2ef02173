# make quickstart   executes the first notebook on the real model, prints ranking and target modules
# make test         unit tests, doctests, README snippets, and every notebook's outputs compared
# make notebooks    executes all notebooks in place (after a change)
# make gallery      renders the executed notebooks to static pages in build/gallery
# make bench        what scoring costs beside a forward pass and other ways to choose (half an hour on two cores)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test notebooks gallery bench clean

quickstart: $(VENV)/ready
	$(BIN)/python notebooks/run.py 00_quickstart --out build

test: $(VENV)/ready
	$(BIN)/python -m pytest -q --durations=10

notebooks: $(VENV)/ready
	$(BIN)/python notebooks/run.py

gallery: $(VENV)/ready
	$(BIN)/python notebooks/gallery.py

bench: $(VENV)/ready
	mkdir -p build
	$(BIN)/python -m tests.bench --out build

$(VENV)/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c .ci/constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build
