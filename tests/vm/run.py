#!/usr/bin/env python3
"""Run the project's tests against a real Firecracker: python3 tests/vm/run.py [options] [pytest arguments].

Theory of operation: fetch.py brings the parts, images.py builds what boots, machine.py boots it and runs pytest
inside, with the very Python that runs this file, at the same paths. Its exit status is pytest's; 77 means that this
machine can't (one line says why), 70 that the VM was not built or did not come up, 124 that time ran out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import fetch
import images
import machine

from fastvsock.runcvm import guest_init

PROJECT = Path(__file__).resolve().parents[2]
BINARY = PROJECT / "build" / "static" / "fastvsock"  # make's
CANNOT_RUN = 77
L1_OUT = "/run/fastvsock/out"
# Hypothesis' plugin alone would cost 15 s under emulation.
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
WATCH = ["-p", "watch"]  # watch.py


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return this program's options, and the rest, which is pytest's."""
    parser = argparse.ArgumentParser(
        description="Run pytest against a real Firecracker in QEMU. Other arguments are pytest's (put -- before those "
        "that have the name of an option here).",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="results (default: vm-results in the cache)")
    parser.add_argument(
        "--binary", type=Path, default=BINARY, metavar="FILE", help="the static binary, which is the guest's agent"
    )
    parser.add_argument(
        "--binary-tests", default="", metavar="WORDS", help="pytest's arguments for tests of the binary, to run first"
    )
    parser.add_argument("--timeout", type=float, default=1200, metavar="SECONDS", help="from QEMU's start (1200)")
    parser.add_argument("--shell", metavar="CMD", help="run a shell command in L1 in place of pytest")
    parser.add_argument("--check", action="store_true", help="tell whether this machine can, and do nothing")
    parser.add_argument("--build-only", action="store_true", help="fetch and build, boot nothing")
    options, rest = parser.parse_known_args()
    return options, rest[1:] if rest[:1] == ["--"] else rest


def prepare() -> Path:
    """Fetch and build what is not in the cache; returns the folder of the images."""
    began = time.monotonic()
    fetch.install_tools()
    machine.report("tools installed", began)
    began = time.monotonic()
    parts = images.parts()
    machine.report("parts fetched", began)
    began = time.monotonic()
    built = images.images(parts)
    with contextlib.suppress(fetch.CannotRun):  # its tests skip
        images.kubectl()
    machine.report("images built", began)
    kernels = [(parts / level / "package").read_text().strip() for level in ("l1", "l2")]
    print(f"vm: L1 {kernels[0]}, L2 {kernels[1]}", flush=True)
    return built


def compile_tests(pytest_arguments: list[str]) -> None:
    """Collect the tests on the host, so that L1 finds bytecode: compiling is slow under emulation.

    A failure here says nothing: the tests may need what only L1 has.
    """
    began = time.monotonic()
    subprocess.run(
        [sys.executable, *PYTEST, "--collect-only", "-q", *pytest_arguments],
        cwd=PROJECT,
        env=os.environ | {"FASTVSOCK_VM": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    machine.report("tests compiled", began)


def guests_files(binary: bytes, out: Path) -> list[images.Entry]:
    """Return what the guest has of RunCVM's bundle: the static binary, and the script that starts it as the agent.

    The script is made as RunCVM's launcher makes it, by its function after `install` has edited that. Port 22 stays
    with the guest's own socat.
    """
    source = (PROJECT / "tests/runcvm/init/document.sh").read_text()
    source = source.replace(":22,", ":2022,").replace("/dev/console", "/tmp/agent.log")
    script = out / "runcvm-init"
    edited = f"{guest_init.start_agent(source)}\nwrite_init {shlex.quote(str(script))}\n"
    subprocess.run(["sh", "-e", "-c", edited], env=os.environ | {"RUNCVM_GUEST": "/.runcvm/guest"}, check=True)
    return [
        *(images.folder(path) for path in (".runcvm", ".runcvm/guest", ".runcvm/guest/bin")),
        images.file(".runcvm/guest/bin/fastvsock", binary, 0o755),
        images.file("runcvm-init", script.read_bytes(), 0o755),
    ]


def command_line(options: argparse.Namespace, pytest_arguments: list[str]) -> str:
    """Return what L1 shall run: a shell script, whose status is the first one that is not 0."""
    lines = [f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH", "status=0"]
    if options.shell is not None:
        return "\n".join([*lines, str(options.shell)])
    lines.append(f"export PYTHONPATH={shlex.quote(str(Path(__file__).parent))}${{PYTHONPATH:+:$PYTHONPATH}}")
    binary_tests = shlex.split(options.binary_tests)
    compile_tests([*binary_tests, *pytest_arguments])
    # -u: the output is live although it goes to a file.
    pytest = [sys.executable, "-u", *PYTEST, *WATCH]
    if binary_tests:
        words = shlex.join([*pytest, f"--junitxml={L1_OUT}/junit-binary.xml", *binary_tests])
        program = shlex.quote(str(options.binary.absolute().parent / "{name}"))
        lines.append(f"FASTVSOCK_TEST_COMMAND={shlex.quote(program)} {words} || status=$?")
    words = shlex.join([*pytest, f"--junitxml={L1_OUT}/junit.xml", *pytest_arguments])
    return "\n".join([*lines, f"{words} || exit $?", "exit $status"])


def main() -> int:
    """Do it all; returns the exit status."""
    options, pytest_arguments = arguments()
    try:
        fetch.check_machine()
        if options.check:
            return 0
        built = prepare()
    except fetch.CannotRun as reason:
        print(f"vm: skipped: {reason}")
        return CANNOT_RUN
    except fetch.Failed as reason:
        print(f"vm: failed: {reason}")
        return machine.BOOT_FAILED
    if options.build_only:
        return 0
    if not options.binary.exists():
        print(f"vm: failed: {options.binary} is not there: run make build/static/fastvsock, or give --binary")
        return machine.BOOT_FAILED
    out = (options.out or images.cache_folder() / "vm-results").resolve()
    try:
        with images.locked(out / ".lock", wait=False):
            command = command_line(options, pytest_arguments)
            images.write_cpio(out / "initrd2-more", guests_files(options.binary.read_bytes(), out))
            environment = machine.passed_on() | {"FASTVSOCK_VM_CACHE": str(images.cache_folder())}
            machine.write_command(out, command, PROJECT, environment)
            return machine.boot_and_run(built, out, options.timeout)
    except BlockingIOError:
        print(f"vm: another run uses {out}: wait for it or give --out")
        return 1


if __name__ == "__main__":
    sys.exit(main())
