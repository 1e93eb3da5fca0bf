PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup demo test lint docs clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The whole way on the built-in tiny model: train, evaluate before and after, merge, chat.
demo: setup
	$(BIN)/python examples/AdvertiseGen/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --cov=ptune --cov-report=term:skip-covered --cov-fail-under=90

docs: setup
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_original_flags.py

clean:
	rm -rf $(VENV) demo build *.egg-info
