# What a person runs; CI runs the same. `make` alone tells the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LINTERS := .github/lint.txt
SOURCES := $(wildcard setup.py pyproject.toml src/fastvsock/engines/*.pyx $(LINTERS))

.PHONY: help build demo test lint check test-vm bench clean \
	alpine check-wheels dist sdist validate-wheels wheels wheels-lock

help:
	@echo "make demo    build, then move a real tree through the emulator and back, with each engine"
	@echo "make test    lint, types, and every test"
	@echo "make test-vm the behaviour tests and the production chain, inside a VM against real Firecracker"
	@echo "make bench   throughput and CPU cost, splice against copy"
	@echo "make build   the environment in $(VENV), with the package in it"
	@echo "make wheels           the four wheels, into wheels/; check-wheels: are they what this source gives?"
	@echo "make validate-wheels  audit, run and measure each; VALIDATE=--quick, --native or '--only PLATFORM'"
	@echo "make sdist, make dist the source distribution, and all that a release publishes, into dist/"
	@echo "make alpine RUN=test  a target in a fresh Alpine container (docker)"
	@echo "make clean   remove what the above made"

build: $(STAMP)

# The environment is used without activation. Without a C compiler the copy engine alone is installed, and pip says so.
$(STAMP): $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastvsock needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --require-hashes --only-binary=:all: --requirement $(LINTERS) \
		|| echo "the linters of the workflows are not for this machine: their tests are skipped"
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

# What is worth its time under emulation: the protocol, the relay, the chain, and each service once.
VM_TESTS := tests/emulator/test_protocol.py tests/connect/test_behaviour.py tests/vm \
	tests/connect/test_side_by_side.py \
	tests/service/test_relaying.py::test_every_connection_is_relayed \
	tests/service/test_relaying.py::test_a_guest_that_refuses_gives_a_closed_connection_and_one_line \
	tests/service/test_listen.py::test_a_connection_is_stdin_and_stdout \
	tests/service/test_listen.py::test_a_connection_is_joined_to_a_socket_of_the_host \
	tests/service/test_listen.py::test_a_connection_gets_a_child_of_its_own

test-vm: build
	$(BIN)/python tests/vm/run.py $(VM_TESTS)

bench: build
	$(BIN)/python -m bench run --quick -o bench/results/quick.json
	$(BIN)/python -m bench report bench/results/quick.json

wheels:
	$(PYTHON) -m wheels.build

check-wheels:
	$(PYTHON) -m wheels.build --check

validate-wheels:
	$(PYTHON) -m wheels.validate $(VALIDATE)

sdist:
	$(PYTHON) -m wheels.build --sdist --output dist

# What a release publishes; TAG, where given, must be that of the version.
dist:
	rm -rf dist
	$(PYTHON) -m wheels.build --check $(if $(TAG),--tag '$(TAG)')
	$(PYTHON) -m wheels.build --sdist --output dist
	cp wheels/*.whl dist

# Pins anew what the .in files ask for. One resolution serves every Python and machine (uv, from PyPI).
wheels-lock:
	for pins in wheels/build wheels/audit wheels/run .github/lint; do \
		uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
			--no-emit-index-url --no-annotate --output-file $$pins.txt $$pins.in || exit 1; \
	done

# The same targets where the C library is musl.
ALPINE ?= python:3.13-alpine
RUN ?= test
alpine:
	docker run --rm --volume '$(CURDIR):/source:ro' --workdir /work $(ALPINE) sh -ceu "\
		apk add --quiet bash gcc git linux-headers make musl-dev strace; \
		tar -C /source --exclude ./.venv --exclude ./.git --exclude '*.so' -cf - . | tar -xf -; \
		make $(RUN)"

clean:
	rm -rf $(VENV) build dist src/fastvsock.egg-info src/fastvsock/engines/_splice.c src/fastvsock/engines/*.so
