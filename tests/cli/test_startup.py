"""What a start of `fastvsock connect` loads: little more than `runcvm-vsock-connect`, which is the same program."""

import sys
from pathlib import Path

import pytest

from support import Listener
from support.startup import AFTER_STDIN, ENGINE, HOT_PATH, loaded

UMBRELLA = {"fastvsock.cli", "fastvsock.cli.connect"}


@pytest.mark.parametrize("end", ["guest", "stdin"])
def test_fastvsock_connect_loads_these_modules_and_no_other(
    listener: Listener, tmp_path: Path, engine: str, end: str
) -> None:
    program = [sys.executable, "-c", "from fastvsock.cli import main; main()", "connect"]
    found = loaded(program, [sys.executable, "-c", "pass"], listener, tmp_path, engine, end)
    assert {"fastvsock.cli", "fastvsock.relaying"} <= found <= HOT_PATH | UMBRELLA | ENGINE[engine] | AFTER_STDIN
