"""What a start of `runcvm-vsock-connect` may load: the list is held, since each module costs every `kubectl exec`."""

import os
import subprocess
from pathlib import Path

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

RECORDING = {"PYTHONPROFILEIMPORTTIME": "1"}  # as -X importtime, and for programs started by their #! line too


def modules(importtime: bytes) -> set[str]:
    """The names in what `-X importtime` has written."""
    lines = [line for line in importtime.decode().splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


def loaded(program: list[str], nothing: list[str], listener: Listener, folder: Path, engine: str, end: str) -> set[str]:
    """What the command `program` imports in a whole run, beyond what the command `nothing` imports.

    `nothing` is the same interpreter without work: what it or its `site` loads, which is not the same everywhere, does
    not count.
    """
    environment = {**os.environ, **RECORDING, "FASTVSOCK_ENGINE": engine}
    idle = subprocess.run(nothing, cwd=folder, env=environment, capture_output=True, timeout=HANG, check=True)
    with started([*program, listener.uds, "5003"], cwd=folder, env=environment) as child:
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


def assert_lean(found: set[str], engine: str, end: str) -> None:
    """Raises AssertionError where a start has loaded a module that it may not load, or where the list is wrong."""
    assert not found & SLOW
    assert found <= HOT_PATH | ENGINE[engine] | (AFTER_STDIN if end == "stdin" else set())
    assert {f"fastvsock.engines._{engine}", "fastvsock.engines"} <= found, "the list of modules was not read right"
