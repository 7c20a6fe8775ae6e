# What a person runs; CI runs the same. `make` alone tells the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(wildcard setup.py pyproject.toml src/fastvsock/engines/*.pyx)

.PHONY: help build demo test lint check test-vm bench clean

help:
	@echo "make demo    build, then move a real tree through the emulator and back, with each engine"
	@echo "make test    lint, types, and every test"
	@echo "make test-vm the behaviour tests and the production chain, inside a VM against real Firecracker"
	@echo "make bench   throughput and CPU cost, splice against copy"
	@echo "make build   the environment in $(VENV), with the package in it"
	@echo "make clean   remove what the above made"

build: $(STAMP)

# The environment is used without activation. Without a C compiler the copy engine alone is installed, and pip says so.
$(STAMP): $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastvsock needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@$(BIN)/python -c 'from fastvsock.engines import choose; print("fastvsock: the", choose("auto"), "engine serves")'
	@touch $@

demo: build
	$(BIN)/python bench/demo.py

test: lint check

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: build
	$(BIN)/python -m pytest

test-vm: build
	$(BIN)/python tests/vm/run.py tests/test_protocol.py tests/test_behaviour.py tests/vm

bench: build
	$(BIN)/python -m bench run --quick -o bench/results/quick.json
	$(BIN)/python -m bench report bench/results/quick.json

clean:
	rm -rf $(VENV) build dist src/fastvsock.egg-info src/fastvsock/engines/_splice.c src/fastvsock/engines/*.so
