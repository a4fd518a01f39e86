# Everything a contributor or CI runs. Needs Python 3.11 to 3.13 and make; the rest is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
DEMO := runs/demo
# A machine with a GPU mostly has its own torch, which set-up would replace.
GPU_PYTHON ?= $(BIN)/python
GPU_DATA ?= data

# One test process per core, at most 4, with one thread each; a file stays in one process so that what its
# tests share is made once. PYTEST_ARGS="-x -n0 tests/test_house.py" replaces all of it.
PYTEST_ARGS ?= -n logical --maxprocesses=4 --dist=loadfile
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo docs gpu soak walk test test-long theory formal sweep validity lint format lock clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## make .venv and install the locked development environment (once)

# uv does the installing (it checks every hash and reads the lock's platform markers); pip only fetches uv.
$(STAMP): requirements/dev.txt pyproject.toml
	@test -x $(BIN)/uv || { \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	    echo "odn-hybrid needs Python 3.11 to 3.13; '$(PYTHON)' is not one (it says:" \
	      "$$($(PYTHON) -V 2>&1 | head -n 1)). Name another: make setup PYTHON=python3.12" >&2; exit 1; }; \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## fit the embedded data set and print full / static / dynamic (a few minutes)
	@rm -rf $(DEMO)
	$(BIN)/odn fit --out $(DEMO)
	$(BIN)/odn compare $(DEMO)

test: lint  ## lint, types and the fast tests: what CI runs (offline after set-up)
	$(PYTEST) $(PYTEST_ARGS)

test-long: setup  ## the tests that train or measure for minutes
	$(PYTEST) -m long --timeout=3600

# Installs from the package index into an empty environment; everything else is offline.
walk: setup  ## README's "Your own images" from the wheel: make walk WALK_DATA=cifar10.npz [WALK_WHEEL=FILE]
	$(BIN)/python tests/walk/walk.py $(if $(WALK_DATA),--data $(WALK_DATA)) $(if $(WALK_WHEEL),--wheel $(WALK_WHEEL))

theory: setup  ## execute every page of theory/ in full (up to 6 minutes on 2 cores)
	$(BIN)/python theory/execute.py

docs: setup  ## build the site into build/docs, warnings are errors (QUICK=1 executes nothing)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python docs/making/build.py $(if $(QUICK),--quick)

soak: setup  ## 15 minutes at 80 % of capacity: make soak SOAK_RUN=runs/mine SOAK_DATA=cifar10.npz
	$(BIN)/python benchmarks/serve_soak.py --run $(SOAK_RUN) --data $(SOAK_DATA)

formal:  ## check the machine-checked proofs of theory/formal/ (needs Coq)
	$(PYTHON) theory/formal/check.py

sweep: setup  ## split all of timm, check the smallest model of every family (about 20 minutes on 2 cores)
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/sweep.py; status=$$?; \
	  $(BIN)/python benchmarks/coverage.py --recount && $(BIN)/python benchmarks/tables.py && exit $$status

validity: setup  ## false certificates by simulation, end to end, all settings (about 5 minutes on one core)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/validity.py

gpu:  ## every row that needs a GPU, in at most 20 minutes: make gpu GPU_DATA=FOLDER [GPU_PYTHON=python]
	$(GPU_PYTHON) benchmarks/gpu.py --data $(GPU_DATA)

lint: setup  ## ruff and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Keeps the versions that still fit; LOCK_ARGS=--upgrade takes the newest. The lock names no package index.
lock:  ## compile requirements/dev.txt from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" --quiet \
	  $(LOCK_ARGS) -o requirements/dev.txt
	@! grep -nE '://|^ *-(i|f|-index|-extra|-find)' requirements/dev.txt

clean:  ## remove caches and builds (not .venv, not runs/)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
