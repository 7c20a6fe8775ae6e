"""The binary for the other machine, under qemu-user: the system calls are real, only the code around is emulated."""

import subprocess
import sys
from pathlib import Path

import pytest

from support import HANG, Listener, pattern, read_exactly, started, write_all
from wheels import places
from wheels.static import build, cpython

MACHINE = "aarch64"
SIZE = 60_000  # bytes: a pipe holds them all


@pytest.fixture(scope="module", params=build.KINDS)
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that run the foreign binary, but for its name and its arguments."""
    qemu = places.qemu_here(MACHINE)
    if not qemu or not cpython.built(MACHINE) or not cpython.built(cpython.NATIVE):
        pytest.skip("by design: the foreign binary is tested where its CPython has been built (make binaries)")
    program = build.link(MACHINE, tmp_path_factory.mktemp("foreign"), kind=request.param)
    return [qemu, "-0", "{name}", str(program.path)]


def called(emulated: list[str], name: str, *arguments: str) -> list[str]:
    """The words that run the foreign binary as `name`."""
    return [*(word.format(name=name) for word in emulated), *arguments]


@pytest.mark.parametrize("arguments", [("--version",), ("/nowhere/v.sock", "7"), ("/nowhere/v.sock", "x"), ()])
def test_it_says_and_returns_what_the_installation_does(emulated: list[str], arguments: tuple[str, ...]) -> None:
    outcomes = []
    for words in (
        called(emulated, "runcvm-vsock-connect", *arguments),
        [str(Path(sys.executable).with_name("runcvm-vsock-connect")), *arguments],
    ):
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)
        outcomes.append((done.returncode, done.stdout, done.stderr))
    assert outcomes[0] == outcomes[1]


def test_it_is_the_whole_program(emulated: list[str]) -> None:
    words = called(emulated, "fastvsock", "doctor")
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)
    assert b"splice" in done.stdout


def test_a_connection_is_moved_whole_both_ways(emulated: list[str], listener: Listener, engine: str) -> None:
    words = called(emulated, "runcvm-vsock-connect", "--engine", engine, "--stats", listener.uds, "7")
    with started(words) as child:
        with listener.accept() as sock:
            write_all(child.stdin.fileno(), pattern(SIZE))
            with sock.makefile("rb") as sent:
                sock.sendall(sent.read(SIZE))
            assert read_exactly(child.stdout.fileno(), SIZE) == pattern(SIZE)
        assert child.wait(HANG) == 0
        assert child.stderr.read().count(f", {engine};".encode()) == 2
