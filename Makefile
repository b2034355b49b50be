# Everything that a newcomer or a robot needs: `make help` lists it. Each target sets itself up in
# .venv, and starts at once when that has been done before.

PYTHON ?= python3
PROTOC ?= protoc
VENV := .venv
COOKBOOK := .venv-cookbook
# Earlier releases of the SDK that the tests run, each in an environment of its own.
SDKS := .venv-sdk-0.25.0 .venv-sdk-0.30.4
BIN := $(VENV)/bin
# The front end: the panel of a notebook, and JupyterLab's extension. jlpm is the package manager that
# comes with Jupyter; its scripts call Jupyter's builder by its name.
PANEL := jupyter_tinker/notebook/static/panel.js
EXTENSION := jupyter_tinker/labextension/package.json
JLPM := cd labextension && PATH="$(abspath $(BIN)):$$PATH" jlpm
JLPM_INSTALLED := labextension/node_modules/.installed
FRONT_END := $(shell find labextension/src labextension/schema labextension/style -type f) \
  $(wildcard labextension/*.json) labextension/build.mjs
# In a container one often is root, which Jupyter wants said.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help install panel lab test test-fast torture lint docs proto bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(PANEL) $(EXTENSION) $(VENV)/.installed ## everything into .venv

panel: $(PANEL) $(EXTENSION) ## the front end: the panel and JupyterLab's extension (needs Node.js)

lab: install ## JupyterLab with the quickstart and a small model to teach
	$(BIN)/jupyter tinker pull smollm2-135m
	$(BIN)/jupyter lab $(AS_ROOT) notebooks/quickstart.ipynb

# Side by side, for much of the time tests wait for servers to start and end: each file in one process.
# tests/conftest.py says in which order, and how many threads each has.
TEST_PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(min(max(os.cpu_count() or 1, 2), 4))')
# Tests of real servers, which time each other out on a busy machine, have a second try, of which there
# are few; the summary shows what failed the first time (tests/conftest.py).
SECOND_TRIES := --max-suite-reruns 3 --rerun-show-tracebacks
# What the browser tests saw, to be looked at afterwards.
TINKER_SCREENSHOTS ?= $(abspath build/screenshots)

test: install $(COOKBOOK)/.installed $(SDKS:=/.installed) ## all tests, with a real model and the cookbook (many minutes)
	@$(JLPM) test
	TINKER_SCREENSHOTS='$(TINKER_SCREENSHOTS)' \
	  $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(SECOND_TRIES)

test-fast: install ## the tests that need no model and no server
	@$(JLPM) test
	$(BIN)/python -m pytest -m "not slow and not e2e and not cookbook"

# 1000 kills take about two hours. A seed that failed is printed; name it to repeat the kills.
TORTURE_KILLS ?= 1000
TORTURE_SEED ?= $(shell $(PYTHON) -c 'import random; print(random.randrange(10**6))')

torture: install ## train while engine and server are killed again and again (TORTURE_KILLS=1000)
	TORTURE_KILLS=$(TORTURE_KILLS) TORTURE_SEED=$(TORTURE_SEED) \
	  $(BIN)/python -m pytest tests/torture -m slow

lint: install ## ruff, mypy, tsc and biome
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(JLPM) check

docs: install ## the documentation, into build/docs/html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs/html

bench: install ## how fast it is on this machine
	$(BIN)/jupyter tinker pull smollm2-135m
	$(BIN)/python tests/bench

# 3.21, because what it generates loads with every protobuf from 4.21 on.
proto: ## wire/tinker_pb2.py from wire/tinker.proto (needs protoc 3.21)
	@$(PROTOC) --version | grep -q ' 3\.21\.' || { \
	  echo "make proto needs protoc 3.21 (Debian: protobuf-compiler), as PROTOC=..." >&2; exit 1; }
	$(PROTOC) --proto_path=. --python_out=. --pyi_out=. jupyter_tinker/wire/tinker.proto

clean: ## away with environments, caches and builds (pulled models stay)
	rm -rf $(VENV) $(COOKBOOK) $(SDKS) labextension/node_modules labextension/lib $(dir $(PANEL)) $(dir $(EXTENSION)) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.cache/*' -prune -exec rm -rf {} +

$(PANEL): $(FRONT_END) $(JLPM_INSTALLED)
	@$(JLPM) build:panel
	@touch $@

$(EXTENSION): $(FRONT_END) $(JLPM_INSTALLED)
	@$(JLPM) build:lab
	@touch $@

$(JLPM_INSTALLED): labextension/package.json labextension/yarn.lock labextension/.yarnrc.yml | $(BIN)/jlpm
	@command -v node > /dev/null || { \
	  echo "The front end is built with Node.js 20.19 or newer (Debian: nodejs)." >&2; exit 1; }
	@$(JLPM) install --immutable > install.log || { cat install.log; exit 1; }
	@touch $@

$(BIN)/jlpm: constraints.txt | $(BIN)/python
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt jupyter-builder
	@touch $@

# JupyterLab takes the extension from where it is built: what is built anew is there after a reload.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python $(PANEL) $(EXTENSION)
	@echo "Installing into $(VENV) ..."
	@SKIP_JUPYTER_BUILDER=1 $(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[test]'
	@$(BIN)/jupyter-builder develop --overwrite .
	@touch $@

# The cookbook has needs of its own, among them packages that jupyter_tinker does without.
$(COOKBOOK)/.installed: tests/cookbook/requirements.txt | $(COOKBOOK)/bin/python
	@echo "Installing the cookbook into $(COOKBOOK) ..."
	@$(COOKBOOK)/bin/python $(PIP_INSTALL) -r tests/cookbook/requirements.txt
	@$(COOKBOOK)/bin/python $(PIP_INSTALL) --no-deps tinker-cookbook==0.6.1
	@touch $@

# Of its own it has the SDK only; what that needs it takes from .venv, which comes behind it.
$(SDKS:=/.installed): .venv-sdk-%/.installed: $(VENV)/.installed | .venv-sdk-%/bin/python
	@echo "Installing the SDK $* into .venv-sdk-$* ..."
	@.venv-sdk-$*/bin/python $(PIP_INSTALL) --no-deps tinker==$*
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$(.venv-sdk-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/behind.pth"
	@touch $@

%/bin/python:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "There is no $(PYTHON); install Python 3.11 or newer, or say make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Say make PYTHON=..." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "$(PYTHON) cannot make environments: it lacks ensurepip (Debian: python3-venv)." >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $*
