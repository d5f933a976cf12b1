# make train      install, then train the quickstart and compare before with after
# make headline   the full recipe over several seeds
# make test       install, then run the tests
# make check      lint, types, import contracts (changes nothing)
# make checkpoint rebuild the bundled tiny model from nothing
#
# Every target may be called again; what is installed already is not installed twice.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
STAMPS := $(VENV)/stamps

# Settings may follow the recipe: make train ARGS="section.key=value ..."
QUICKSTART ?= training/configs/quickstart.yaml
CHECKPOINT ?= agents/checkpoints/atlas-tiny
# One process for each GPU. Without one, two processes of one thread each are faster than one process of two threads.
PROCESSES ?= $(shell gpus=$$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU'); n=$$(nproc 2>/dev/null || echo 1); \
  [ "$$gpus" -gt 0 ] && echo $$gpus || { [ $$n -gt 2 ] && echo 2 || echo $$n; })
# Ctrl-C lets the iteration end and saves; that may take a while.
RUN = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) --shutdown-timeout 600
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install train headline checkpoint test lint types imports check format clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(STAMPS)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "expected Python 3.11 or newer, got $$($(PYTHON) --version 2>&1); call: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

# torch goes first and alone: resolved together with what depends on it, pip may fetch another build and its GPU libraries.
$(STAMPS)/torch: $(STAMPS)/python constraints.txt
	@echo "installing torch (once)"
	$(PIP) torch
	touch $@

$(STAMPS)/train: $(STAMPS)/torch setup.cfg pyproject.toml constraints.txt
	@echo "installing the project for training (once)"
	$(PIP) --editable '.[train,data]'
	touch $@

$(STAMPS)/test: $(STAMPS)/train setup.cfg pyproject.toml constraints.txt
	@echo "installing what the tests need (once)"
	$(PIP) --editable '.[train,data,test]'
	touch $@

$(STAMPS)/lint: $(STAMPS)/test setup.cfg pyproject.toml constraints.txt
	@echo "installing the linters (once)"
	$(PIP) --editable '.[all]'
	touch $@

install: $(STAMPS)/train

# The tiny model, made where it is not at hand; order only, so that an installation never makes it again.
$(CHECKPOINT)/model.safetensors: | $(STAMPS)/train
	@echo "making the tiny model (once, about 75 minutes on two cores)"
	$(MAKE) --no-print-directory checkpoint

train: $(STAMPS)/train | $(CHECKPOINT)/model.safetensors
	$(RUN) -m training $(QUICKSTART) $(ARGS)

headline: $(STAMPS)/train | $(CHECKPOINT)/model.safetensors
	$(BIN)/python -m training.headline --processes $(PROCESSES) $(ARGS)

checkpoint: $(STAMPS)/train
	$(RUN) -m training.tiny_lmm $(CHECKPOINT) $(ARGS)
	$(BIN)/python -m agents label --model $(CHECKPOINT) --processes $(PROCESSES)

test: $(STAMPS)/test
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMPS)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMPS)/lint
	$(BIN)/mypy

imports: $(STAMPS)/lint
	$(BIN)/lint-imports --no-cache

check: lint types imports

format: $(STAMPS)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
