"""What a start of `runcvm-vsock-connect` loads: the list is held, since each module costs every `kubectl exec`."""

import subprocess
import sys
from pathlib import Path

import pytest

from support import HANG, Listener
from support.startup import HOT_PATH, assert_lean, loaded, modules

IN_MEMORY = ["-c", "from fastvsock.runcvm_vsock_connect import main; main()"], ["-c", "pass"]
AS_MODULE = ["-m", "fastvsock.runcvm_vsock_connect"], ["-m", "nothing"]


@pytest.mark.parametrize("end", ["guest", "stdin"])
@pytest.mark.parametrize(("program", "nothing"), [IN_MEMORY, AS_MODULE], ids=["-c", "-m"])
def test_a_start_loads_these_modules_and_no_other(
    program: list[str], nothing: list[str], listener: Listener, tmp_path: Path, engine: str, end: str
) -> None:
    (tmp_path / "nothing.py").touch()
    python = [sys.executable]
    assert_lean(loaded(python + program, python + nothing, listener, tmp_path, engine, end), engine, end)


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
