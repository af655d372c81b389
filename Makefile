# The front door. `make` alone prints the targets. Build settings live in CMakePresets.json and pyproject.toml.
PYTHON ?= python3
PRESET ?= dev
JOBS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() or 1)')
CPP_FILES = $(shell find csrc tests/cpp tests/hostile benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.inl')

.DEFAULT_GOAL := help
.PHONY: help dev cpp test test-all lint fmt types stubs golden bench clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

dev:  ## install the package and every development tool into the current environment
	$(PYTHON) -m pip install ".[test,lint,demo]"

cpp:  ## build and run the C++ tests (PRESET=dev|asan-ubsan|tsan)
	cmake --preset $(PRESET)
	cmake --build build/$(PRESET) --parallel $(JOBS)
	ctest --test-dir build/$(PRESET) --output-on-failure --no-tests=error

test:  ## fast Python tests against the installed package
	$(PYTHON) -m pytest

test-all:  ## everything, in a fresh environment, as a release needs it
	.ci/run

lint:  ## ruff, clang-format, the folder rule, the size report
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	clang-format --dry-run -Werror $(CPP_FILES)
	$(PYTHON) tools/check_layers.py
	$(PYTHON) tools/check_sizes.py --strict

fmt:  ## format Python and C++
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	clang-format -i $(CPP_FILES)

types:  ## mypy, and the stub of the core against the installed one
	$(PYTHON) -m mypy --strict python/gemmule
	$(PYTHON) tools/gen_stubs.py --check

stubs:  ## write python/gemmule/_core.pyi again from the installed core
	$(PYTHON) tools/gen_stubs.py

golden:  ## write the golden files again (needs the [oracle] extra)
	$(PYTHON) tools/make_golden.py
	$(PYTHON) tools/make_media_golden.py tests/golden
	$(PYTHON) tools/make_media_pixels_golden.py tests/golden

bench:  ## measure the kernels into benchmarks/results (MODELS=FILES: loading too); see docs/PERF.md
	cmake --preset dev
	cmake --build build/dev --parallel $(JOBS)
	$(PYTHON) benchmarks/run.py $(MODELS)

clean:  ## remove everything that a build made
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
