# The ways in: make demo, make test, make lint, make bench. Each sets up what it needs in .venv.
#
#   PYTHON       the interpreter that makes the environment; 3.11 or newer
#   TORCH_INDEX  where to take PyTorch from. Empty: pip's default, which on Linux is the CUDA build (several
#                gigabytes). The small CPU build (about 200 MB):
#                    make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   TEST_WORKERS processes that share out the files of tests; 0: this one alone, for a debugger
#   TEST_CHAOS_S seconds of test-chaos on each place

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
TEST_CHAOS_S ?= 120

.PHONY: help demo test test-chaos test-compose test-pythons lint bench services clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "The venv module is missing; on Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
	  if [ -n "$(TORCH_INDEX)" ]; then \
	    echo "Installing PyTorch from $(TORCH_INDEX)"; \
	    $(BIN)/pip install --quiet -c constraints.txt --no-deps torch --index-url "$(TORCH_INDEX)"; \
	  else \
	    echo "Installing PyTorch. On Linux pip's default is the CUDA build, several gigabytes."; \
	    echo "The small CPU build instead: stop now (Ctrl-C) and add TORCH_INDEX=https://download.pytorch.org/whl/cpu"; \
	    $(BIN)/pip install -c constraints.txt torch; \
	  fi; }
	@echo "Installing the rest into $(VENV)"
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## read a document once, ask it questions from new processes
	@$(BIN)/rwkv-runtime demo

test: $(READY)  ## the tests; PYTEST_ARGS are passed on
	@$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

test-chaos: $(READY)  ## minutes of writers, readers and evictors killed at random, on each place in turn
	@TEST_CHAOS_S=$(TEST_CHAOS_S) $(BIN)/pytest -q -s tests/statestore/test_chaos.py $(PYTEST_ARGS)

test-compose: $(READY)  ## build and start docker-compose.yml, test the running stack, tear it down
	@docker info >/dev/null 2>&1 || { echo "test-compose needs a Docker engine: start one, or name it in DOCKER_HOST"; exit 1; }
	@$(BIN)/pytest -m compose tests/compose $(PYTEST_ARGS)

test-pythons:  ## the storage layer's tests on every other Python here, without torch
	@for version in 3.11 3.12 3.13; do \
	  python=$$(command -v python$$version) && $$python -c '' 2>/dev/null || { echo "python$$version: not here"; continue; }; \
	  echo "python$$version: $$($$python --version)"; \
	  env=$(VENV)-$$version; test -x $$env/bin/python || $$python -m venv $$env || exit 1; \
	  $$env/bin/pip install --quiet -c constraints.txt -e '.[test]' || exit 1; \
	  $$env/bin/python -m pytest tests/statestore $(PYTEST_ARGS) || exit 1; \
	done

lint: $(READY)  ## format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY)  ## the benchmarks, as ratios to a peer or a physical limit
	@$(BIN)/python -m benchmarks

services:  ## install Redis, PostgreSQL, PgBouncer, Chromium, zsh, fish, clang and locales for the tests (Debian, Ubuntu)
	@command -v apt-get >/dev/null || { echo "make services knows apt only; install redis-server, PostgreSQL, PgBouncer, Chromium, zsh, fish, clang and locales by hand"; exit 1; }
	@if command -v redis-server >/dev/null && ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 && command -v chromium >/dev/null && \
	  command -v zsh >/dev/null && command -v fish >/dev/null && command -v clang >/dev/null && test -x /usr/sbin/pgbouncer && test -e /usr/share/i18n/locales/da_DK; then \
	  echo "redis-server, PostgreSQL, PgBouncer, Chromium, zsh, fish, clang and locales are here"; \
	else \
	  SUDO=$$( [ "$$(id -u)" = 0 ] || echo sudo ); \
	  $$SUDO apt-get update -qq && $$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server postgresql pgbouncer chromium zsh fish clang locales >/dev/null; \
	fi

clean:  ## remove the environment and what tools left behind
	rm -rf $(VENV) $(VENV)-3.* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
