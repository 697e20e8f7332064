# Everything runs in .venv/, made here from constraints.txt (pinned, with hashes).
# `make test` and `make lint` are what CI runs first; `.ci/run` does the rest.
.DEFAULT_GOAL := help
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip -qq --disable-pip-version-check
TESTS ?= tests
BENCH ?=
FUZZ_S ?= 30
TARGET ?=

.PHONY: help demo test lint bench fuzz lock venv clean

help: ## these lines
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

demo: venv ## see it work: stand-in vendors, real clients, no root, no internet
	@$(VENV)/bin/holdgate demo

# A test that hangs ends after ten minutes, and says where it was; the run with it, when it is the third.
HANGS := -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true --max-worker-restart 2

# Four processes for all of them, since they wait more than they work: a file is one process's, since its tests share instances and namespaces.
test: venv ## all tests, against the editable install (TESTS=tests/test_gate.py for one file)
	@$(PY) -m pytest -q $(if $(filter tests,$(TESTS)),-n 4 --dist loadfile --no-loadscope-reorder $(HANGS)) $(TESTS)

lint: venv ## ruff, formatting, mypy --strict
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

bench: venv ## bare mitmdump, a naive addon and Holdgate in one run (BENCH="--seconds 3 --json out.json")
	@$(PY) tests/bench/run.py $(BENCH)

fuzz: venv $(VENV)/.fuzz ## random input for every parser and the pipeline, coverage-guided (FUZZ_S=600 TARGET="json xml")
	@$(PY) tests/fuzz/run.py --seconds $(FUZZ_S) $(TARGET)

# A platform without a wheel of atheris is no error: run.py says so, and mutates without coverage.
$(VENV)/.fuzz: tests/fuzz/requirements.txt | venv
	@if $(PIP) install --only-binary :all: --require-hashes -r $<; then touch $@; fi

lock: ## writes constraints.txt and tests/fuzz/requirements.txt anew from pyproject.toml
	@sh .ci/lock

venv: $(VENV)/.installed

# Requirements only when they changed; --no-deps, so that nothing without a hash is ever installed.
$(VENV)/.requirements: constraints.txt | $(PY)
	@echo "installing what constraints.txt pins into $(VENV) (a minute or two)"
	@$(PIP) install --require-hashes -r constraints.txt
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.requirements
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(PY):
	@if python=$$(sh .ci/find-python); then "$$python" -m venv $(VENV); \
	elif command -v uv >/dev/null 2>&1; then echo "using uv instead"; uv venv --quiet --seed --python 3.12 $(VENV); \
	else exit 1; fi

clean: ## removes .venv and caches
	rm -rf $(VENV) .fuzz_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
