"""What a start of `runcvm-vsock-connect` loads: the list is held, since each module costs every `kubectl exec`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import HANG, Listener, started

HOT_PATH = {
    "_socket",
    "_thread",
    "errno",
    "fastvsock",
    "fastvsock.engines",
    "fastvsock.runcvm_vsock_connect",
    "fastvsock.errors",
    "fastvsock.handshake",
    "fastvsock.relaying",
    "fastvsock.stdio",
    "stat",
    "time",
}
ENGINE = {
    "splice": {"fastvsock.engines._splice"},
    "copy": {"fastvsock.engines._copy", "fcntl", "select", "termios"},
}
AFTER_STDIN = {"fcntl", "termios"}  # to look into the socket's queues

# Each would be a sizeable part of the start; most have come in by accident somewhere else.
SLOW = {
    "argparse",
    "asyncio",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "importlib.metadata",
    "inspect",
    "logging",
    "pathlib",
    "re",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "struct",
    "subprocess",
    "threading",
    "traceback",
    "typing",
    "warnings",
}

IN_MEMORY = ["-c", "from fastvsock.runcvm_vsock_connect import main; main()"], ["-c", "pass"]
AS_MODULE = ["-m", "fastvsock.runcvm_vsock_connect"], ["-m", "nothing"]


def modules(importtime: bytes) -> set[str]:
    """The names in what `-X importtime` has written."""
    lines = [line for line in importtime.decode().splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


def loaded(program: list[str], nothing: list[str], listener: Listener, folder: Path, engine: str, end: str) -> set[str]:
    """What the program imports in a whole run, beyond what the same interpreter imports for nothing.

    So what the interpreter itself or its `site` loads, which is not the same everywhere, does not count.
    """
    (folder / "nothing.py").touch()
    python = [sys.executable, "-X", "importtime"]
    idle = subprocess.run([*python, *nothing], cwd=folder, capture_output=True, timeout=HANG, check=True)
    environment = {**os.environ, "FASTVSOCK_ENGINE": engine}
    with started([*python, *program, listener.uds, "5003"], cwd=folder, env=environment) as child:
        with listener.accept() as connection:
            child.stdin.write(b"up")
            assert connection.recv(10) == b"up"
            connection.sendall(b"down")
            if end == "stdin":
                child.stdin.close()
                assert connection.recv(10) == b""  # the half-close, after all that the end of stdin leads to
        out, err = child.stdout.read(), child.stderr.read()
        child.wait(HANG)
    assert (child.returncode, out) == (0, b"down"), err
    return modules(err) - modules(idle.stderr)


@pytest.mark.parametrize("end", ["guest", "stdin"])
@pytest.mark.parametrize(("program", "nothing"), [IN_MEMORY, AS_MODULE], ids=["-c", "-m"])
def test_a_start_loads_these_modules_and_no_other(
    program: list[str], nothing: list[str], listener: Listener, tmp_path: Path, engine: str, end: str
) -> None:
    found = loaded(program, nothing, listener, tmp_path, engine, end)
    assert not found & SLOW
    assert found <= HOT_PATH | ENGINE[engine] | (AFTER_STDIN if end == "stdin" else set())
    assert {f"fastvsock.engines._{engine}", "fastvsock.engines"} <= found, "the list of modules was not read right"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_needs_no_more_than_a_start(option: str) -> None:
    python = [sys.executable, "-X", "importtime", "-c"]
    idle = subprocess.run([*python, "pass"], capture_output=True, timeout=HANG, check=True)
    program, _ = IN_MEMORY
    done = subprocess.run([*python, program[1], option], capture_output=True, timeout=HANG, check=True)
    assert modules(done.stderr) - modules(idle.stderr) <= HOT_PATH


def test_a_wrong_usage_or_a_missing_socket_needs_no_more_than_a_start(tmp_path: Path) -> None:
    python = [sys.executable, "-X", "importtime", "-c"]
    idle = subprocess.run([*python, "pass"], capture_output=True, timeout=HANG, check=True)
    program, _ = IN_MEMORY
    for arguments in (["--fast"], [str(tmp_path / "v.sock"), "5003"]):
        done = subprocess.run([*python, program[1], *arguments], capture_output=True, timeout=HANG, check=False)
        assert done.returncode in (1, 2)
        assert modules(done.stderr) - modules(idle.stderr) <= HOT_PATH
