# Everything here works on a fresh machine with a C compiler, make and Python >= 3.10: the first target that needs it makes
# a virtual environment in .venv and installs into it: the versions of tests/locked.txt. PYTHON=/path/to/python chooses another
# interpreter, TESTS=tests/unit some of the tests.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help venv lock deps build test demo lint c-test sanitize bench dist clean

BIN := .venv/bin
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python3.10 python)
# A usable one is new enough, makes environments, and has the headers that the C extension needs.
PROBE := import sys, venv, ensurepip, os, sysconfig; \
	sys.exit(sys.version_info < (3, 10) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \t\2/p' Makefile | expand -t 18

venv: .venv/installed ## the virtual environment, with all that development needs
.venv/installed: pyproject.toml setup.py tests/locked.txt
	@found=; for candidate in $(CANDIDATES); do \
		"$$candidate" -c '$(PROBE)' >/dev/null 2>&1 && { found=$$candidate; break; }; \
	done; \
	[ "$$found" ] || { echo "make: no usable Python among: $(CANDIDATES). It must be 3.10 or newer, with venv and headers" \
		"(Debian: apt-get install python3-venv python3-dev); PYTHON=/path/to/python names another one." >&2; exit 1; }; \
	[ -x $(BIN)/pip ] || { echo "$$found -m venv .venv"; rm -rf .venv; "$$found" -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat \
		-c tests/locked.txt -e '.[dev]'
	@touch $@

lock: venv ## the newest versions of what tests need, into tests/locked.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --extra dev --no-annotate \
		--custom-compile-command "make lock" pyproject.toml -o tests/locked.txt

deps: ## what the tests need beside the environment: system packages (apt-get, as root), a compiler for macOS
	.ci/deps
	@$(MAKE) venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ziglang

build: .venv/built ## the compiled module, into fdhandoff/
.venv/built: .venv/installed build_ffi.py src/fdhandoff.c src/fdhandoff.h
	$(BIN)/python build_ffi.py --in-place
	@touch $@

test: build c-test ## all tests: unit, property, fault, integration, C
	$(BIN)/python -m $(if $(TESTS),pytest $(TESTS),tests)

demo: build ## a server under load, handed over again and again; prints what its clients saw
	$(BIN)/python examples/demo.py

lint: venv ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

c-test: ## the C core alone
	$(MAKE) -C tests/c all

sanitize: build ## the Python tests with the C core under address, undefined-behaviour and thread sanitizers
	.ci/sanitized address,undefined tests/unit tests/fault
	.ci/sanitized thread tests/unit

bench: build ## every speed claim, beside its peer and its limit
	$(BIN)/python -m benchmarks

dist: venv ## source distribution and wheel, into dist/
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m abi3audit --strict dist/*.whl

clean: ## removes all that was made here, the environment included
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info fdhandoff/_native*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
	@[ ! -f tests/c/Makefile ] || $(MAKE) -C tests/c clean
