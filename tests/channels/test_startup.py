"""What a start of `fastvsock exec` loads: the list is held, since each module costs every `kubectl exec`."""

import os
import subprocess
import sys

import pytest

from support import HANG
from support.channels import Guest

HOT_PATH = {
    "_socket",
    "_thread",
    "errno",
    "fastvsock",
    "fastvsock.channels",
    "fastvsock.channels.client",
    "fastvsock.channels.protocol",
    "fastvsock.cli",
    "fastvsock.cli.exec",
    "fastvsock.cli.lean",
    "fastvsock.engines",
    "fastvsock.engines.exchange",
    "fastvsock.engines.frames",
    "fastvsock.errors",
    "fastvsock.handshake",
    "fastvsock.relaying",
    "fastvsock.stdio",
    "fcntl",
    "stat",
    "time",
}
ENGINE = {
    "splice": {"fastvsock.engines._frames", "fastvsock.engines._splice"},
    "copy": {"fastvsock.engines._framescopy", "select", "termios"},
}
TERMINAL = {"fastvsock.host", "fastvsock.host.terminal", "termios"}
SCRIPT = "import sys; sys.argv = ['fastvsock', 'exec', *sys.argv[1:]]; from fastvsock.cli import main; main()"


def modules(script: str, *arguments: str) -> set[str]:
    """The modules that a run of `script` imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


@pytest.mark.parametrize("options", [[], ["-i"], ["-t"]], ids=" ".join)
def test_a_start_loads_these_modules_and_no_other(guest: Guest, engine: str, options: list[str]) -> None:
    found = modules(SCRIPT, "--engine", engine, *options, guest.uds, "true") - modules("pass")
    assert found <= HOT_PATH | ENGINE[engine] | (TERMINAL if options == ["-t"] else set())
    assert ENGINE[engine] <= found, "the list of modules was not read right"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["--fast"], ["/nope.sock", "true"]], ids=" ".join)
def test_help_and_wrong_usage_need_no_more(arguments: list[str]) -> None:
    assert modules(SCRIPT, *arguments) - modules("pass") <= HOT_PATH | ENGINE["splice"]
