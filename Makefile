# Each target sets up .venv by itself; only python3 (3.10 or later) and make are needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test lint types clean

demo: $(INSTALLED)
	@$(BIN)/python examples/demo.py

test: $(INSTALLED)
	@$(BIN)/pytest

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED)
	@$(BIN)/mypy

clean:
	@rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The file takes its name last, so that an installation that was cut short is begun again.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed; give make PYTHON=...")'
	@echo "Setting up .venv, once (torch is large: a few minutes)"
	@$(PYTHON) -m venv .venv || { echo "python3 cannot make environments; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@
