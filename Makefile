# Everything runs in .venv; the only things needed beforehand are Python 3.11 or newer, make, git and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
OUT ?= demo
# What is imported is compiled then, once, in containers that forbid it too; compiling all that is installed takes a minute.
unexport PYTHONDONTWRITEBYTECODE
# Two workers of one thread each measured fastest on two cores; more threads a worker only wait for each other.
WORKERS ?= 2
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-slow check docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

setup: $(INSTALLED)  ## .venv, pinned dependencies, the command, the default weights
	@$(BIN)/sam-inspect weights fetch mobile_sam

demo: setup  ## draw a product, train, inspect, score: the main job in a few minutes; OUT=DIR to choose the folder
	$(BIN)/sam-inspect demo --out $(OUT)

test: setup  ## the tests, with what they need; a few minutes
	@$(BIN)/sam-inspect weights fetch mobilenet_v2 dinov2_vits14 || echo "the tests that need these weights are skipped"
	$(TEST) -m "not slow"

test-slow: setup  ## the tests that take minutes each
	@$(BIN)/sam-inspect weights fetch mobilenet_v2 dinov2_vits14
	$(TEST) -m slow --timeout 1800

check: $(INSTALLED)  ## lint, format, types, and the sizes table
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/sizes.py

docs: $(INSTALLED)  ## the documentation's pages into site/
	$(BIN)/python tools/cli_docs.py
	$(BIN)/mkdocs build --strict

clean:  ## removes .venv and everything built
	rm -rf .venv site $(OUT)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sam_inspect needs Python 3.11 or newer; name one: make setup PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[torch,anomalib,onnx,openvino,int8,serve,postgres,dev]' -e plugins/sam_inspect_anomalib
	@touch $@
