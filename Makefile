# make demo   set up, then show one forward pass against SGD
# make test   set up, then ruff, pyright, import-linter and pytest
# make docs   set up, then the site in site/; warnings are errors
# make setup  only the set-up: .venv with the package (editable) and its tools, at the versions of constraints.txt
# make scatter  add the optional torch-scatter, compiled here against the installed torch (about 5 minutes)
# make clean  remove what these made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

.PHONY: setup demo test docs scatter clean

setup: $(STAMP)

# The stamp is written last, so a set-up that was broken off is done again.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	mkdir -p checkpoints
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/amortopt demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# No build isolation: the build needs the installed torch. No pip cache: a wheel that was built against another
# torch fails at import.
scatter: setup
	$(BIN)/python -m pip install setuptools wheel
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation --no-cache-dir torch-scatter

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
