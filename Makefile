# Each target creates .venv if needed. Requirements: python3 (3.10 or later) and make. Without a CUDA device,
# CPU=1 installs the CPU builds of PyTorch, which are much smaller: make demo CPU=1
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
INDEX := $(if $(CPU),--extra-index-url https://download.pytorch.org/whl/cpu)
SIZE := $(if $(CPU),0.5 GB to download and 2 GB on disk,3 GB to download and 6.5 GB on disk (with CPU=1: 0.5 and 2 GB))

.PHONY: demo test test-slow fuzz lint types docs wheel clean

demo: $(INSTALLED)
	@$(BIN)/python examples/demo.py

# All tests but those marked slow, in two processes.
test: $(INSTALLED)
	@$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow"

# The tests that take 10 s or more each.
test-slow: $(INSTALLED)
	@$(BIN)/pytest --numprocesses 2 --dist worksteal -m slow

# Run the readers on randomly damaged files for about an hour, and write tests/fuzz/outcomes.md.
fuzz: $(INSTALLED)
	@FUZZ_MINUTES=1.2 FUZZ_TABLE=tests/fuzz/outcomes.md $(BIN)/pytest tests/fuzz

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo --no-cache

types: $(INSTALLED)
	@$(BIN)/mypy

# Build the site into site/, without a network. A broken link is an error.
docs: $(INSTALLED)
	@$(BIN)/mkdocs build --strict

# Build dist/ as for a release, and check it.
wheel: $(INSTALLED)
	@rm -rf dist
	@$(BIN)/python -m build
	@$(BIN)/twine check --strict dist/*
	@DIST=dist $(BIN)/pytest tests/test_packaging.py

clean:
	@rm -rf .venv demo build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The file is created last, so that an interrupted installation starts over.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed; give make PYTHON=...")'
	@echo "Setting up .venv (once): about $(SIZE), most of it PyTorch"
	@$(PYTHON) -m venv .venv || { echo "python3 cannot create virtual environments; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PIP) install --quiet --upgrade "pip>=24"
	@PYTHONWARNINGS=ignore $(PIP) install $(INDEX) --editable ".[dev]"
	@touch $@
