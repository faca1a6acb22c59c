# Every target makes the environment it needs: `make demo` and `make test` work in a fresh clone.

PYTHON ?= python3
VENV   ?= .venv
# More packages to test against, for example PEERS=torch==2.13.0
PEERS  ?=
# Where install-capi puts the C libraries
PREFIX ?= /usr/local

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SECONDARY:

# --- environment -----------------------------------------------------------------------------
# One stamp per extra of pyproject.toml: a target installs the extra that it needs, once.

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%.stamp: pyproject.toml | $(BIN)/python
	@echo "installing bnnumba[$*] into $(VENV)"
	@$(PIP) install --editable '.[$*]'
	@touch $@

# Tests run in as many processes as there are CPUs, up to 4: in each, Numba has its own threads.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# --- what a newcomer runs --------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.demo.stamp ## train a small ConvNet on handwritten digits (DEMO_ARGS=--quick)
	$(BIN)/python docs/examples/digits.py $(DEMO_ARGS)

.PHONY: examples
examples: $(VENV)/.demo.stamp ## run the other examples, on small inputs
	$(BIN)/python docs/examples/time_series.py
	$(BIN)/python docs/examples/merge_workers.py
	$(BIN)/python docs/examples/streaming_scaler.py --megabytes 64

.PHONY: test
test: $(VENV)/.test.stamp ## run all tests but the largest (TEST_ARGS="-k moments": some)
	$(PYTEST) $(TEST_ARGS)
	$(if $(TEST_ARGS),,$(MAKE) gpu-test VENV=$(VENV)-gpu)

# The tests that need numba-cuda and its compilers, 200 MB that nothing else needs: they have an
# environment of their own.
.PHONY: gpu-test
gpu-test: $(VENV)/.test.stamp $(VENV)/.cu13.stamp ## compile the CUDA kernels and test what drives them
	$(PYTEST) tests/test_gpu_compile.py tests/test_gpu_driver.py \
	    tests/test_gpu_interpreted.py tests/test_gpu_dispatch.py $(TEST_ARGS)

.PHONY: test-large
test-large: $(VENV)/.test.stamp ## run the tests that need tens of gigabytes
	$(BIN)/python -m pytest -m large $(TEST_ARGS)

# --- what a developer runs -------------------------------------------------------------------

.PHONY: peers
peers: $(BIN)/python ## install packages to compare with (PEERS="torch==2.13.0")
	$(if $(PEERS),$(PIP) install $(PEERS))

.PHONY: lint
lint: $(VENV)/.lint.stamp ## check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: gpu-check
gpu-check: ## test and time CUDA kernels on a GPU, with what PYTHON has
	$(PYTHON) tests/gpu_check.py $(GPU_CHECK_ARGS)

.PHONY: bench
bench: $(VENV)/.bench.stamp ## time bnnumba and its peers, write docs/benchmarks/ and the README's figures
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

.PHONY: bench-smoke
bench-smoke: $(VENV)/.bench.stamp ## run every benchmark once, without timing
	$(BIN)/python -m pytest benchmarks --benchmark-disable $(BENCH_ARGS)

.PHONY: capi
capi: $(VENV)/.capi.stamp ## build the C libraries and their header into capi/build
	$(MAKE) -C capi stage PYTHON=$(abspath $(BIN))/python

.PHONY: install-capi
install-capi: capi ## install them (PREFIX=/usr/local)
	$(MAKE) -C capi install PYTHON=$(abspath $(BIN))/python PREFIX=$(abspath $(PREFIX))

.PHONY: capi-test
capi-test: capi $(VENV)/.test.stamp ## run the tests of the C libraries alone
	$(BIN)/python -m pytest tests/test_capi*.py $(TEST_ARGS)

.PHONY: fuzz
fuzz: capi ## run the fuzzer on the C library (FUZZ_RUNS=1000000)
	$(MAKE) -C capi fuzz PYTHON=$(abspath $(BIN))/python

.PHONY: docs
docs: $(VENV)/.docs.stamp ## build the documentation and run its examples
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q -b doctest docs docs/_build/doctest

.PHONY: wheel
wheel: capi ## build a wheel into dist/, with the C libraries
	rm -rf build dist
	$(PIP) wheel --no-deps --wheel-dir dist .

.PHONY: clean
clean: ## remove everything that the other targets made
	rm -rf $(VENV) $(VENV)-gpu build dist docs/_build docs/api/generated demo.png *.egg-info
	rm -rf capi/build .benchmarks .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
