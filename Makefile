# make demo: install into .venv and run the whole way. make test: what CI runs. make docs: the site, in site/.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test pytest lint docs clean

demo: .venv/installed
	$(BIN)/mfpo demo

# mypy, which keeps one core busy, beside the tests.
test: .venv/installed
	$(MAKE) --jobs 2 lint pytest

pytest: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python docs/plots.py
	$(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs site
