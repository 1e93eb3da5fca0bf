PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALLED := $(VENV)/.installed

.PHONY: setup demo test lint docs peer faults load stops malformed fuzz mutants clean

setup: $(INSTALLED)

# peft stands apart, for the tests that need it: where transformers finds it, every process with a
# Trainer loads it, and bitsandbytes, which takes as long as torch.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps --upgrade --target $(VENV)/peft peft
	touch $@

# The whole way on the built-in tiny model: train, evaluate before and after, merge, chat.
demo: setup
	$(BIN)/python examples/AdvertiseGen/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		echo 'no Chromium: the page of ptune serve --web is not tested in a browser'
	$(BIN)/pytest -n 2 --dist worksteal --cov=ptune --cov-report=term:skip-covered --cov-fail-under=90

# transformers' own tests of a model, run on ours: those of its source distribution, or with
# PEER=DIR those of a git checkout of the same version, which has the tests of `generate` as well.
peer: setup
	folder=$$(mktemp -d) && \
	version=$$($(BIN)/python -c 'import transformers; print(transformers.__version__)') && \
	$(BIN)/pip install --quiet --target $$folder/site parameterized && \
	{ test -n "$(PEER)" || { $(BIN)/pip download --quiet --no-deps --no-binary transformers \
		-d $$folder transformers==$$version && tar xzf $$folder/transformers-$$version.tar.gz -C $$folder; }; } && \
	PTUNE_PEER_TESTS=$(or $(PEER),$$folder/transformers-$$version)/tests \
		PYTHONPATH=$$folder/site HF_HUB_OFFLINE=1 $(BIN)/pytest tests/peer; \
	status=$$?; rm -rf $$folder; exit $$status

# Trainings, evaluations, predictions and merges killed anywhere, each followed by the same command again.
faults: setup
	$(BIN)/python tests/faults/kill_anywhere.py --train 1100 --processes 60 --eval 100 \
		--predict 100 --merge 100

# `ptune serve` under load, a part of whose clients hang up; REQUESTS=N of them.
load: setup
	$(BIN)/python tests/faults/serve_load.py --requests $(or $(REQUESTS),20000)

# SIGTERM to it in the middle of that; STOPS=N times.
stops: setup
	$(BIN)/python tests/faults/serve_stops.py --stops $(or $(STOPS),50)

# Requests that schemathesis makes of its interface; REQUESTS=N of them.
malformed: setup
	$(BIN)/python tests/faults/serve_malformed.py --requests $(or $(REQUESTS),10000)

# Mutation testing of the modules that pyproject.toml names, or with MUTANTS=PATTERN of some:
# MUTANTS="ptune.generation.sampling*". Results stay in mutants/; `mutmut results`, `mutmut show NAME`.
mutants: setup
	$(PIP) -e '.[mutants]'
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/mutmut run \
		--max-children $(or $(JOBS),1) $(foreach pattern,$(MUTANTS),'$(pattern)')
	$(BIN)/mutmut results | sed -E '/: (not checked|caught by type check)$$/d'

# Inputs made by following branches, for each kind of file that is read; RUNS=N of each.
fuzz: setup
	$(BIN)/pip install --quiet atheris
	for name in records model_config checkpoint_config manifest yaml prefix index prompt predictions; do \
		$(BIN)/python tests/fuzz/run.py $$name $(or $(RUNS),120000) || exit 1; done

docs: setup
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_original_flags.py

clean:
	rm -rf $(VENV) demo build mutants *.egg-info
