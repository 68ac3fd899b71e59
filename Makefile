# Every target sets up what it needs: a fresh clone needs Python 3.11 or newer, make, and a package index.

UV := $(shell command -v uv 2>/dev/null || echo .boot/bin/uv)
RUN := $(UV) run --frozen
PYTHON ?= python3

.PHONY: demo test check format chaos bench docs lock clean setup

demo: setup  ## Starts the real service, asks it, stops it, and shows that it remembers.
	@$(RUN) python examples/demo.py

test: setup  ## The whole suite, with the servers that it needs.
	@$(RUN) pytest -n 2 --ignore=tests/chaos
	@# Alone: its herds take both cores from whatever runs beside them.
	@$(RUN) pytest -n 0 tests/chaos

check: setup  ## Format, lint, layers, types, and the fast tests (SQLite only): three to five minutes on two cores.
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) lint-imports
	@$(RUN) pyright
	@$(RUN) pytest -n 2 -m "not slow"

format: setup  ## Formats, and mends what can be mended by itself.
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

chaos: setup  ## Breaks instances in every way, and prints what that cost: about five minutes.
	@$(RUN) python -m tests.chaos

bench: setup  ## Measures, against rivals in the same run, and prints tables.
	@$(UV) run --frozen --group bench python -m benchmarks

docs: setup  ## Runs the code of README and guides.
	@$(RUN) pytest -n 2 tests/docs

lock: setup  ## Takes up the newest versions that the ranges admit.
	@$(UV) lock --upgrade

clean:
	rm -rf .venv .boot .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist

setup: .venv/.synced

.venv/.synced: $(UV) pyproject.toml uv.lock
	@$(UV) sync --frozen --quiet
	@touch $@

.boot/bin/uv:
	@$(PYTHON) -m venv .boot
	@.boot/bin/pip install --quiet --disable-pip-version-check 'uv>=0.8,<1'
