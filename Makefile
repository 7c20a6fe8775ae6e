# The commands of development; CI runs the same. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LINTERS := .github/lint.txt
SOURCES := $(wildcard setup.py pyproject.toml src/fastvsock/*/*.pyx $(LINTERS))

.PHONY: help build demo test lint check format fuzz test-binary test-emulated test-vm bench mutants clean \
	alpine binaries check-wheels dist github-release sdist validate-wheels wheels wheels-lock

help:
	@echo "make build    create the environment in $(VENV) and install the package and its tools there"
	@echo "make demo     copy a tree of files through the emulator and back, in every way"
	@echo "make test     lint and check"
	@echo "make lint     run ruff and mypy"
	@echo "make check    run the tests"
	@echo "make format   apply ruff's formatting and its safe fixes"
	@echo "make fuzz     give the parsers of channels bytes of any kind, for FUZZ seconds each (60)"
	@echo "make test-binary  run the tests of the command line with the static binary of x86_64; KIND=plain, BINARY_TESTS=tests"
	@echo "make test-emulated  run them with that of aarch64 under qemu-user"
	@echo "make test-vm  run the tests that need a guest against real Firecracker, inside a VM"
	@echo "make bench    measure throughput and CPU cost, splice against copy"
	@echo "make mutants  change the code one place at a time and see whether tests notice; MUTANTS=--help"
	@echo "make clean    remove what these targets made"
	@echo "Releases (wheels/README.md):"
	@echo "make wheels           build the four wheels into wheels/"
	@echo "make check-wheels     build them again and compare them with those in wheels/"
	@echo "make validate-wheels  audit, run and measure each; VALIDATE=--quick, --native or '--only PLATFORM'"
	@echo "make binaries         build the program as one static file for each machine, into dist/ (the first time, 5 minutes)"
	@echo "make sdist            build the source distribution into dist/"
	@echo "make dist             collect in dist/ what a release publishes"
	@echo "make github-release   publish the binaries in dist/ as the GitHub release TAG"
	@echo "make wheels-lock      pin the tools again, after a change to an .in file"
	@echo "make alpine RUN=test  run a target in a fresh Alpine container (docker)"

build: $(STAMP)

# Programs are run from $(VENV) without activating it. Without a C compiler only the copy engine is installed.
$(STAMP): $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastvsock needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --require-hashes --only-binary=:all: --requirement $(LINTERS) \
		|| echo "not every linter of $(LINTERS) could be installed: make lint cannot run, and their tests are skipped"
	@$(BIN)/python -c 'from fastvsock.engines import choose; print("fastvsock: engine", choose("auto"))'
	@touch $@

demo: build
	$(BIN)/python bench/demo.py

test: lint check

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two workers: tests wait more than they compute. A file stays in one, since its tests may share what they set up.
PYTEST_WORKERS ?= 2
check: build
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile

# The examples differ from run to run; those of `make check` do not.
FUZZ ?= 60
fuzz: build
	FASTVSOCK_FUZZ=$(FUZZ) $(BIN)/python -m pytest -q tests/channels/test_fuzz.py

# Tests are slow under emulation, so the VM runs a part: the protocol, the relay, the chain, and each service once.
VM_TESTS := tests/emulator/test_protocol.py tests/connect/test_behaviour.py tests/vm/test_chain.py tests/vm/test_cost.py \
	tests/connect/test_side_by_side.py::test_20_execs_and_20_cps_at_once_on_descriptor_3 \
	tests/connect/test_side_by_side.py::test_20_execs_and_20_cps_at_once_by_one_proxy \
	tests/connect/test_side_by_side.py::test_the_old_scripts_shape_fails_where_these_hold \
	tests/service/test_relaying.py::test_every_connection_is_relayed \
	tests/service/test_relaying.py::test_a_guest_that_refuses_gives_a_closed_connection_and_one_line \
	tests/service/test_listen.py::test_a_connection_is_stdin_and_stdout \
	tests/service/test_listen.py::test_a_connection_is_joined_to_a_socket_of_the_host \
	tests/service/test_listen.py::test_a_connection_gets_a_child_of_its_own \
	tests/channels/test_exec.py::test_stdout_and_status_are_the_commands \
	tests/channels/test_exec.py::test_a_stream_up_and_down_is_whole \
	tests/channels/test_guest.py::test_run_takes_files \
	tests/channels/test_guest.py::test_popen_talks_with_a_running_command \
	tests/channels/test_guest.py::test_communicate

# What runs the program as processes, and of the slower folders what every connection, command and installation needs.
BINARY_TESTS_image := tests/connect tests/cli tests/channels/test_exec.py tests/channels/test_or_else.py \
	tests/channels/test_endings.py tests/channels/test_terminal.py tests/runcvm/test_binary*.py

# The other kind differs in how it starts: arguments, streams, signals, and every byte of a few connections.
BINARY_TESTS_plain := tests/connect/test_usage.py tests/connect/test_handshake.py tests/connect/test_half_close.py \
	tests/connect/test_closed_stdout.py tests/connect/test_signals.py tests/connect/test_terminal.py \
	tests/channels/test_exec.py
BINARY_TESTS = $(BINARY_TESTS_$(KIND))

# Those that the static binary runs, which starts five times as fast as the package: agent, exec, cp, some of connect.
VM_BINARY_TESTS := tests/vm/test_agent.py tests/vm/test_runcvm.py tests/vm/test_copying.py tests/vm/test_kubectl.py \
	tests/channels/test_exec.py tests/channels/test_terminal.py \
	tests/channels/test_endings.py::test_signals_go_to_the_commands_process_group \
	tests/connect/test_behaviour.py::test_d1_a_few_bytes_are_forwarded_at_once \
	tests/connect/test_behaviour.py::test_d2_the_end_of_the_guest_ends_the_process_although_stdin_is_open \
	tests/connect/test_behaviour.py::test_d5_failure_and_success_have_their_own_exit_status \
	tests/connect/test_behaviour.py::test_both_directions_at_once_come_through_whole \
	tests/connect/test_behaviour.py::test_a_stalled_consumer_stops_the_guest_and_loses_nothing \
	tests/connect/test_behaviour.py::test_four_at_once_do_not_mix \
	--deselect tests/channels/test_exec.py::test_wrong_usage_and_a_missing_socket_are_125 \
	--deselect tests/channels/test_terminal.py::test_it_is_as_it_was_when_the_connection_breaks

# The static binary of this machine under both of its names, and in plain/ that of the other kind (minutes the first
# time).
BINARY := build/static/fastvsock
$(BINARY): pyproject.toml $(shell find src/fastvsock -name '*.py' -o -name '*.pyx') $(wildcard wheels/*.py wheels/static/*)
	rm -f build/static/fastvsock-*
	$(PYTHON) -m wheels.static.build --only x86_64 --wheels build/static --output build/static
	mkdir -p build/static/plain
	for name in fastvsock runcvm-vsock-connect; do \
		ln -sf "$$(echo '$(CURDIR)'/build/static/fastvsock-*-linux-x86_64-plain)" "build/static/plain/$$name" && \
		ln -sf "$$(echo '$(CURDIR)'/build/static/fastvsock-*-linux-x86_64)" "build/static/$$name" || exit 1; \
	done

# The tests of the program, run by it: by the kind that ships, or with KIND=plain by the other.
KIND := image
RUN_TESTS = $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) --dist loadfile $(BINARY_TESTS)
test-binary: build $(BINARY)
	FASTVSOCK_TEST_COMMAND='$(CURDIR)/build/static/$(if $(filter plain,$(KIND)),plain/){name}' $(RUN_TESTS)

# The same by the binary of aarch64.
test-emulated: build
	rm -rf build/aarch64
	$(PYTHON) -m wheels.static.build --only aarch64 --wheels build/aarch64 --output build/aarch64
	qemu=$$($(PYTHON) -c 'from wheels import places; print(places.qemu("aarch64"))') && \
		program=$$(echo '$(CURDIR)'/build/aarch64/fastvsock-*-linux-aarch64$(if $(filter plain,$(KIND)),-plain)) && \
		FASTVSOCK_TEST_COMMAND="$$qemu -0 {name} $$program" $(RUN_TESTS)

# The binary is the agent in the guest.
test-vm: build $(BINARY)
	$(BIN)/python tests/vm/run.py --binary-tests '$(VM_BINARY_TESTS)' $(VM_TESTS)

bench: build
	$(BIN)/python -m bench run --quick -o build/bench/quick.json
	$(BIN)/python -m bench report build/bench/quick.json

# Hours for all of it; a run goes on where the last one stopped. MUTANTS="relaying.py --budget 20"
mutants:
	PYTHONPATH=tests $(PYTHON) -m mutants $(MUTANTS)

wheels:
	$(PYTHON) -m wheels.build

check-wheels:
	$(PYTHON) -m wheels.build --check

validate-wheels:
	$(PYTHON) -m wheels.validate $(VALIDATE)

binaries:
	$(PYTHON) -m wheels.static.build

sdist:
	$(PYTHON) -m wheels.build --sdist --output dist

# What a release publishes, if this source gives the bits of wheels/ and their validation was full. TAG: v and version.
dist:
	rm -rf dist
	$(PYTHON) -m wheels.build --check $(if $(TAG),--tag '$(TAG)')
	$(PYTHON) -m wheels.build --sdist --output dist
	$(PYTHON) -m wheels.static.build --check --output dist
	cd dist && sha256sum fastvsock-*-linux-* NOTICE >SHA256SUMS
	cp wheels/*.whl dist

# The static binaries as what a release on GitHub offers. TAG, and GH_TOKEN for the rights.
github-release:
	gh release create '$(TAG)' --verify-tag --title '$(TAG)' --notes 'What has changed: .github/CHANGELOG.md' \
		dist/fastvsock-*-linux-* dist/NOTICE dist/SHA256SUMS

# Needs uv and PyPI. One resolution serves every Python and every machine.
wheels-lock:
	for pins in wheels/build wheels/audit wheels/run .github/lint tests/mutants/tools; do \
		uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
			--no-emit-index-url --no-annotate --output-file $$pins.txt $$pins.in || exit 1; \
	done

# The targets above, on a system whose C library is musl.
ALPINE ?= python:3.13-alpine
RUN ?= test
alpine:
	docker run --rm --volume '$(CURDIR):/source:ro' --workdir /work $(ALPINE) sh -ceu "\
		apk add --quiet bash gcc git linux-headers make musl-dev strace; \
		tar -C /source --exclude ./.venv --exclude ./.git --exclude '*.so' -cf - . | tar -xf -; \
		make $(RUN)"

clean:
	rm -rf $(VENV) build dist src/fastvsock.egg-info src/fastvsock/engines/_frames.c src/fastvsock/engines/_splice.c src/fastvsock/copying/_openat2.c src/fastvsock/*/*.so
