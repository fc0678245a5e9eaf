# Every target sets itself up. VENV=... chooses another virtual environment.
VENV ?= .venv
PYTHON = $(VENV)/bin/python
STAMP = $(VENV)/.smart-scanner-dev
# Tests at a time: half of their time goes into waiting for what hangs. JOBS=0 runs them one after the other.
JOBS ?= 3
PYTEST = $(PYTHON) -m pytest -n $(JOBS) --dist worksteal

.PHONY: setup test check native docs reliability soak clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py tools/setup.sh src/smartscan/__init__.py $(wildcard src/smartscan/*.c)
	@tools/setup.sh $(VENV) '[dev]'
	@touch $@

# The whole suite. tests/docker-up finds or starts a Docker engine for it and prints the environment to reach it
# (NAME=value lines); tests/docker-down stops what it started.
test: setup
	@trap : INT TERM; \
	if [ -x tests/docker-up ]; then set -a; eval "$$(tests/docker-up)"; set +a; fi; \
	$(PYTEST) $(ARGS); status=$$?; \
	if [ -x tests/docker-down ]; then tests/docker-down >/dev/null; fi; \
	exit $$status

# What a change must pass before it is committed: some minutes. Real hangs and containers are in `make test`.
check: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) tools/docs.py --check
	$(PYTEST) -q -m 'not slow and not docker' --ignore=tests/faults $(ARGS)

# Compile the native walk again.
native:
	@tools/setup.sh $(VENV) '[dev]'
	@touch $(STAMP)

docs: setup
	$(PYTHON) tools/docs.py

# Every row of the matrix of faults, every step of it, and docs/reliability.md made of what was measured: half an hour.
reliability: setup
	@trap : INT TERM; \
	if [ -x tests/docker-up ]; then set -a; eval "$$(tests/docker-up)"; set +a; fi; \
	$(PYTHON) tools/reliability.py; status=$$?; \
	if [ -x tests/docker-down ]; then tests/docker-down >/dev/null; fi; \
	exit $$status

# The long tests with new seeds, again and again, until one fails, HOURS are over (default 8) or somebody stops it.
HOURS ?= 8
soak: setup
	@trap 'exit 130' INT TERM; end=$$(($$(date +%s) + $(HOURS) * 3600)); \
	while [ $$(date +%s) -lt $$end ]; do \
		SMART_SCAN_SEED=$$(date +%s); export SMART_SCAN_SEED; echo "SMART_SCAN_SEED=$$SMART_SCAN_SEED"; \
		SMART_SCAN_HISTORIES=100000 $(PYTHON) -m pytest -q tests/test_supervisor.py || exit; \
		SMART_SCAN_SCANS=50 $(PYTHON) -m pytest -q -m 'slow or fuse or root' $(ARGS) || exit; \
	done

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	rm -rf $(VENV) src/smartscan/*.so
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
